"""The commands in the documentation, run in order in a copy of the repository, as a reader would run them.

They run in real shells. Except in ``make demo``, the Python programs are forks of a warm interpreter, which draw a
report only where the command is ``report``. On most pages ``demo`` is made small, and ``test_accuracies.py`` tests the
accuracies of the shipped one. Those of a page's own recipes are tested here; ``pytest -s`` lists them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import warm
from support.documents import AS_SHIPPED, LEAST, NEEDS, Block, blocks, pages
from support.running import PATIENCE, ROOT, environment

from cifar_dist.config.saved import read_config
from cifar_dist.run_folder import RunFolder

CHEAP: dict[str, object] = {"train.epochs": 2, "eval.tta": "0", "model.name": "tiny-cnn"}
"""The settings of ``demo`` on the other pages."""
PACKING = "cifar-dist pack digits shards/digits\n"
"""With what most pages begin. It runs on docs/data.md; elsewhere a packed dataset is copied, mostly a small one."""
MET = """
ruff check draw_bars.py cifar_dist/models
ruff format --check draw_bars.py cifar_dist/models
lint-imports --no-logo
python -m pytest -q -p no:cacheprovider tests/docs/test_generated_tables.py tests/docs/test_mentions.py
"""
"""What CONTRIBUTING.md adds meets these parts of ``make check`` and ``make test``, which take seconds."""
FEW = {"train.batch_size": 13}
"""With which an epoch of the small dataset has the twenty steps that the pages name."""


def is_run(block: Block) -> bool:
    return block.language == "bash" and not block.needs


RUN = [page for page in pages() if (page.name == "README.md" and page.parent == ROOT) or any(map(is_run, blocks(page)))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_markers_name_known_needs(page: Path) -> None:
    assert {need for block in blocks(page) for need in block.needs.split(", ") if need} <= NEEDS
    markers = re.findall(r"<!-- needs", page.read_text(encoding="utf-8"))
    assert len(markers) == sum(bool(block.needs) for block in blocks(page)), "a marker stands directly before its block"


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_work(page: Path, digits: Path, all_digits: Path, tmp_path: Path) -> None:
    assert any(map(is_run, blocks(page))), f"{page.name} has no ```bash block that is run"
    copy = copy_of_the_repository(tmp_path / "cifar-dist")
    is_packed = page.name != "data.md" and any(is_run(block) and PACKING in block.text for block in blocks(page))
    if is_packed:
        shutil.copytree(all_digits if page in AS_SHIPPED else digits, copy / "shards" / "digits")
    if page not in AS_SHIPPED:
        make_demo_cheap(copy, CHEAP | FEW if is_packed else CHEAP)
    own = {
        "PATH": f"{copy}/.venv/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(copy),  # or the installed package would be the one that is tested
        "UV_OFFLINE": "1",
        "PIP_NO_INDEX": "1",
    }
    real, forked = environment(own), environment({**own, **warm.programs(copy / ".venv")})
    for block in blocks(page):
        if block.file:
            (copy / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "diff":
            apply(block.text, copy)
        elif is_run(block):
            text = block.text.replace(PACKING, "") if is_packed else block.text
            run(text, copy, real if block.text.startswith("make demo") else forked)
    if page.name == "CONTRIBUTING.md":
        run(MET, copy, forked)
    for name, accuracy in accuracies(copy).items():
        print(f"{page.relative_to(ROOT)}: {name} ends at {accuracy:.2%}")
        assert accuracy > LEAST, name


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_images_are_sorted_as_a_table_says(tmp_path: Path, delimiter: str) -> None:
    """The script of docs/data.md passes over rows that say nothing, and prints contradictions."""
    (script,) = (block.text for block in blocks(ROOT / "docs" / "data.md") if block.file == "sort_images.py")
    table, images = tmp_path / "labels.csv", tmp_path / "train"
    rows = 'image,label|1,cat||1.png,cat|2.png,dog|2,cat|3, "n/a"|  |4|5,|6,dog,1|7,dog'.replace(",", delimiter)
    table.write_text(rows.replace("|", "\n"), encoding="utf-8-sig")
    images.mkdir()
    for number in range(1, 7):
        (images / f"{number}.png").write_bytes(b"")
    done = subprocess.run([sys.executable, "-c", script, images, table], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "not moved: 2.png has the classes cat, dog\nmoved 3 of 6 files\n"
    found = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    assert found == ["2.png", "4.png", "5.png", "cat/1.png", "dog/6.png", "n-a/3.png"]


def accuracies(copy: Path) -> dict[str, float]:
    """Return the accuracies of the runs that are not based on the cheap ``demo``, by evaluation.

    One that was extended has those of both lengths.
    """
    found = {}
    for path in copy.glob("runs/*/evaluations/*/summary.json"):
        if read_config(RunFolder(path.parents[2]).config).model.name != CHEAP["model.name"]:
            found[path.parent.name] = json.loads(path.read_text())["accuracy"]
    return found


def copy_of_the_repository(target: Path) -> Path:
    """Copy what git would commit, with the installed environment of this process."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in names:
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    (target / ".venv").mkdir()
    for part in ("lib", "pyvenv.cfg"):
        (target / ".venv" / part).symlink_to(Path(sys.prefix, part))
    (target / ".venv" / ".ready").write_text(f"{target}\n")  # newer than its sources: nothing is installed again
    return target


def make_demo_cheap(copy: Path, settings: dict[str, object]) -> None:
    demo = copy / "cifar_dist" / "recipes" / "demo.toml"
    text = demo.read_text(encoding="utf-8")
    for key, value in settings.items():
        field = key.partition(".")[2]
        text, found = re.subn(rf"^{field} = .*", f"{field} = {json.dumps(value)}", text, count=1, flags=re.M)
        assert found
    demo.write_text(text, encoding="utf-8")


def run(text: str, copy: Path, env: dict[str, str]) -> None:
    """Run a block; the tests are not run inside the tests, nor the checks, which take a minute."""
    script = re.sub(r"^make (check|test)\b.*$", "", text, flags=re.M)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=copy,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3 * PATIENCE,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}"


def apply(diff: str, copy: Path) -> None:
    """Apply a diff of one hunk without line numbers."""
    header, *lines = diff.splitlines()[1:]
    path = copy / header.removeprefix("+++ b/")
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kept) for kept in (" -", " +"))
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{header}: the lines of the diff are not there"
    path.write_text(text.replace(old, new), encoding="utf-8")
