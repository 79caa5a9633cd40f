"""What a user asked for in a file arrives there, whatever the name leads to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_dist.files.outputs import write_output


def test_an_output_goes_through_links_and_into_pipes_and_devices(tmp_path: Path) -> None:
    """As root, a renamed file would replace even /dev/null."""
    (tmp_path / "link.csv").symlink_to("real.csv")
    write_output(tmp_path / "link.csv", "a\n")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "a\n"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_output(tmp_path / "pipe", b"b\n")
    assert os.read(reader, 100) == b"b\n"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    write_output(Path(os.devnull), "c\n")
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "mine"])
def test_an_output_to_stdout_keeps_what_its_file_has(tmp_path: Path, name: str) -> None:
    """A job's log, or a file that ``>>`` appends to."""
    (tmp_path / "mine").symlink_to("/dev/stdout")
    code = "import sys; from pathlib import Path; from cifar_dist.files.outputs import write_output; print('before')"
    code += "; write_output(Path(sys.argv[1]), 'output\\n'); print('after')"
    (tmp_path / "log").write_text("earlier\n")
    with (tmp_path / "log").open("a") as log:
        subprocess.run([sys.executable, "-c", code, tmp_path / name], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "earlier\nbefore\noutput\nafter\n"
