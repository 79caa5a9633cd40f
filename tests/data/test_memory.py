"""Memory: what is free to a process, and how much of it ``pack``, ``verify`` and ``index`` take."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cifar_dist.data import memory, statistics
from cifar_dist.data.arrays import as_images
from cifar_dist.data.index import index
from cifar_dist.data.memory import free_memory, require_memory_for_images
from cifar_dist.data.pack import pack
from cifar_dist.data.verify import verify
from cifar_dist.errors import UserError

GROUPS = {
    "0::/job/step": ("memory.max", "memory.current", "inactive_file 300\nactive_file 200\nslab 5\n"),
    "4:cpu,memory:/job/step": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file 300\ntotal_active_file 200\n",
    ),
}


@pytest.mark.parametrize("line", GROUPS)
def test_the_limit_of_a_slurm_job_or_a_container_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    limit, usage, stat = GROUPS[line]
    (tmp_path / "cgroup").write_text(f"1:cpu:/elsewhere\n{line}\n")
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "cgroup")
    for version in ("_VERSION_1", "_VERSION_2"):
        monkeypatch.setattr(memory, version, getattr(memory, version)._replace(root=tmp_path))
    before = free_memory()
    for folder, of_group in ((tmp_path / "job", "10000"), (tmp_path / "job" / "step", "max")):
        folder.mkdir()
        for name, text in ((limit, of_group), (usage, "7000"), ("memory.stat", stat)):
            (folder / name).write_text(text)
    assert before > free_memory() == 10000 - 7000 + 300 + 200
    with pytest.raises(UserError) as error:
        require_memory_for_images("a.zip", 2, (20, 30, 3), "shrink them", copies=1)
    assert str(error.value) == (
        "a.zip: 2 images of 30x20 require 0.0 GiB of memory, but only 0.0 GiB are free; shrink them"
    )
    require_memory_for_images("a.zip", 1, (20, 30, 3), "")
    with pytest.raises(UserError, match="1 images of 30x20 in each of 2 processes require"):
        require_memory_for_images("a.zip", 1, (20, 30, 3), "", copies=2)


def test_pack_has_the_images_in_memory_once_and_verify_and_index_a_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_CHUNK_BYTES", 1 << 20)
    source = tmp_path / "plugin.py"
    source.write_text(
        "import numpy as np\n"
        "from cifar_dist.data.raw import RawDataset, RawSplit\n\n"
        "def read():\n"
        "    images, ids = np.zeros((40, 512, 512, 3), np.uint8), np.arange(40)\n"
        "    return RawDataset('black', ('a', 'b'), {'train': RawSplit(images, ids % 2, ids)})\n"
    )
    tracemalloc.start()
    try:
        pack(f"{source}:read", tmp_path / "out", val_fraction=0.4, codec="npy")
        _, of_pack = tracemalloc.get_traced_memory()
        packed = tmp_path / "out"
        tracemalloc.reset_peak()
        verify(packed)
        _, of_verify = tracemalloc.get_traced_memory()
        (packed / "manifest.json").unlink()
        tracemalloc.reset_peak()
        index(packed)
        _, of_index = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    images = np.prod((40, 512, 512, 3))
    assert of_pack < 1.5 * images
    assert max(of_verify, of_index) < images / 2


@pytest.mark.parametrize("shape", [(40, 256, 256), (40, 256, 256, 1), (40, 256, 256, 3), (40, 3 * 256 * 256)])
def test_images_of_an_array_are_copied_once(shape: tuple[int, ...]) -> None:
    stored = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    stored.flags.writeable = False  # as those of a file
    tracemalloc.start()
    try:
        images = as_images(stored, "x_train")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if images.size > stored.size:  # grey
        assert (images == stored.reshape(40, 256, 256, 1)).all()
    assert peak < 1.1 * images.nbytes


@pytest.mark.parametrize(
    "shape", [(10**7, 1000, 1000), (10**7, 1000, 1000, 1), (10**7, 1000, 1000, 3), (10**7, 3 * 10**6)]
)
def test_images_of_an_array_that_do_not_fit_in_memory_are_refused(shape: tuple[int, ...]) -> None:
    stored = np.broadcast_to(np.zeros(1, np.uint8), shape)
    expected = r"x_train: 10,000,000 images of 1000x1000 require 27939.7 GiB .*; store fewer or smaller images"
    with pytest.raises(UserError, match=expected):
        as_images(stored, "x_train")
