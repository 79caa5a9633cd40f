"""Write docs/images/*.png from runs of its own, on a CPU: python docs/make_pictures.py [FOLDER].

It packs the digits, trains `demo` and the sweep of docs/sweeps.md, and draws with the commands that the pages show. The
report and the list of runs are screenshots by Chromium, which must be installed. The runs are created in FOLDER and
used again if it has them; by default it is a temporary one. docs/make_performance.py draws performance.png.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial import KDTree

from cifar_dist.errors import UserError
from cifar_dist.files.atomic import write_atomic

HERE = Path(__file__).parent
IMAGES = HERE / "images"
MAX_BYTES = 300_000
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SWEEP = "lr"
_SHORT = "short"
_FRAME = """<!doctype html><body style="margin:0">
<iframe src="{page}" style="border:0;width:{width}px;height:{height}px"></iframe>"""


def make_runs(folder: Path) -> None:
    """Train what the pictures show; a finished run is not trained again."""
    sweep = re.search(r"^```toml\n(# lr\.toml\n.*?)^```", (HERE / "sweeps.md").read_text(encoding="utf-8"), re.M | re.S)
    assert sweep is not None, "docs/sweeps.md shows lr.toml"
    (folder / f"{_SWEEP}.toml").write_text(sweep[1], encoding="utf-8")
    if not (folder / "shards/digits/manifest.json").exists():
        call(folder, "pack", "digits", "shards/digits")
    call(folder, "train", "demo")
    call(folder, "train", "demo", "--run.name", _SHORT, "--train.epochs", "2")  # misclassifies enough images to show
    call(folder, "sweep", "run", f"{_SWEEP}.toml", "--seeds", "3", "--jobs", "2")


def draw_pictures(folder: Path) -> None:
    """Draw every picture from the runs in ``folder``, each by the command that its page shows."""
    drawn = folder / "drawn.png"
    call(folder, "preview", "shards/digits", "se-resnet-randaugment", "--samples", "3", "--out", str(drawn))
    keep(drawn, "preview.png")
    sweep = ("sweep", "table", f"{_SWEEP}.toml", "--seeds", "3")
    call(folder, *sweep, "--picture", str(drawn))
    keep(drawn, "sweep.png")
    rows = [f"{_SWEEP}.{row}.s0" for row in ("lr=0.1+weight_decay=0.001", "lr=0.03+weight_decay=0.001", "adamw")]
    call(folder, "runs", "compare", *rows, "--picture", str(drawn))
    keep(drawn, "compare.png")
    call(folder, "lr-find", "demo", "--low", "1e-3", "--high", "10", "--steps", "40")
    keep(folder / "runs/demo/figures/lr_curve.png", "lr-find.png")
    call(folder, "replay", "demo", "30")
    keep(folder / "runs/demo/replays/step-00000030/replay.png", "replay.png")
    (sheet,) = folder.glob("runs/demo/evaluations/*_model_final/figures/samples.png")
    keep(sheet, "predictions.png")
    call(folder, "report", "demo", _SHORT)
    call(folder, "runs")
    for page, name, width, height in (
        ("runs/demo/report.html", "report.png", 1180, 1390),
        ("runs/demo/report.html", "report-phone.png", 390, 844),
        (f"runs/{_SHORT}/report.html#confusions-1", "confusions.png", 1180, 455),
        ("runs/index.html", "runs.png", 1180, 402),
    ):
        path, _, part = page.partition("#")
        photograph(folder / path, drawn, width, height, part)
        keep(drawn, name)


def photograph(page: Path, out: Path, width: int, height: int, part: str = "") -> None:
    """Write a screenshot of a page, in CSS pixels, from its top or the element ``part``.

    Chromium's window has at least 500 pixels, and is empty below the top of its page, hence the frame.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise UserError(f"no browser found ({', '.join(_BROWSERS)}); install one: apt-get install chromium")
    frame = out.with_suffix(".html")
    shown = f"{page.resolve().as_uri()}#{part}"
    frame.write_text(_FRAME.format(page=shown, width=width, height=height), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={out}"]
    size = f"--window-size={max(width, 500)},{height}"
    subprocess.run([browser, *options, size, frame.resolve().as_uri()], check=True, stderr=subprocess.DEVNULL)
    with Image.open(out) as image:
        cropped = image.crop((0, 0, width, height))
    cropped.save(out)


def keep(picture: Path, name: str) -> None:
    """Write a picture to docs/images/ with at most 256 colours, which no one can tell from all of them.

    Raises:
        UserError: it is larger than ``MAX_BYTES``.
    """
    png = io.BytesIO()
    with Image.open(picture) as image:
        _with_few_colours(image.convert("RGB")).save(png, "PNG", optimize=True)
    if len(content := png.getvalue()) > MAX_BYTES:
        raise UserError(f"{name} has {len(content):,} bytes, more than {MAX_BYTES:,}; draw it smaller")
    write_atomic(IMAGES / name, content)
    print(f"{IMAGES.relative_to(HERE.parent) / name}: {len(content):,} bytes", flush=True)


def _with_few_colours(image: Image.Image) -> Image.Image:
    """Reduce an RGB image to 256 colours: the most frequent half exactly, so that no area changes its colour."""
    pixels = np.asarray(image).reshape(-1, 3)
    colours, where, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    spread = image.quantize(128, Image.Quantize.MAXCOVERAGE).getpalette()
    palette = np.concatenate([colours[np.argsort(-counts)[:128]], np.reshape(spread or [], (-1, 3))])
    _, nearest = KDTree(palette).query(colours)  # Pillow's own search takes another colour where there is the same one
    few = Image.fromarray(nearest[where].astype(np.uint8).reshape(image.height, image.width), "P")
    few.putpalette(palette.flatten().tolist())
    return few


def call(folder: Path, *words: str) -> None:
    """Run a verb of cifar-dist in a folder."""
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "cifar_dist", *words]
    subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, check=True)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    make_runs(folder.resolve())
    draw_pictures(folder.resolve())


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
