"""The page of a folder of runs: of its content, escaped, and written where it belongs."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from support.run_folders import write_run

from cifar_dist import cli
from cifar_dist.config import Config, ModelConfig, TrainConfig
from cifar_dist.run_folder import RunFolder
from cifar_dist.runs.index import write_index
from cifar_dist.tracking import timeline
from cifar_dist.tracking.metrics import MetricsLog

CONFIG = Config(model=ModelConfig("tiny-cnn"), train=TrainConfig(epochs=4))
ROW = re.compile(r'<tr(?: data-files="\w+")?>(<td.*?)</tr><tr class="narrow">(<td.*?)</tr>')
"""The cells of a run, and its line on a phone."""


def test_the_page_reads_again_only_the_runs_that_have_changed(here: Path) -> None:
    for name in "abc":
        write_run(here / "runs" / name, CONFIG, test=0.5)
    shutil.rmtree(here / "runs" / "c" / "final")
    timeline.append(here / "runs" / "c" / "timeline.jsonl", timeline.Event(timeline.utc(), "started", 0, 1))
    training = [RunFolder(here / "runs" / "c")]
    training[0].lock()

    def page(change: Callable[[], object]) -> dict[str, list[str]]:
        """Write the page, with another model in the rows of the former one, after a change of a run."""
        if (path := here / "runs" / "index.html").exists():
            path.write_text(path.read_text().replace("tiny-cnn", "kept"))
        change()
        rows = ROW.findall(write_index(here / "runs").read_text())
        cells = [re.findall(r"<td[^>]*>(?:<bdi[^>]*>)?([^<]*)", row) for row, _ in rows]
        return {name: others for name, *others in cells}

    assert {name: row[:2] for name, row in page(lambda: None).items()} == {
        "a": ["finished", "tiny-cnn"],
        "b": ["finished", "tiny-cnn"],
        "c": ["training", "tiny-cnn"],
    }
    summary = next((here / "runs" / "a" / "evaluations").glob("*/summary.json"))
    changed = page(lambda: summary.write_text(summary.read_text().replace("0.5", "0.25")))
    assert changed["a"][1:6] == ["tiny-cnn", "digits", "4 of 4", "", "25.00"]
    assert changed["b"][1:6] == ["kept", "digits", "4 of 4", "", "50.00"]
    assert page(training.clear)["c"][0] == "killed", "although no file has changed"
    (here / "runs" / "a").rename(here / "runs" / "d")
    assert set(page(lambda: None)) == {"b", "c", "d"}


def test_a_page_with_other_columns_lends_no_row(here: Path) -> None:
    """Its cells would be below the titles of others."""
    write_run(here / "runs" / "a", CONFIG, test=0.5)
    path = write_index(here / "runs")
    of_this_version = path.read_text()
    path.write_text(re.sub("<th[^>]*>TTA</th>", "", of_this_version).replace("tiny-cnn", "kept"))
    assert write_index(here / "runs").read_text() == of_this_version


def test_the_page_tells_data_of_one_name_apart(here: Path) -> None:
    """Also in rows that are kept from before, when there was one."""
    runs, shown, lines = here / "runs", list[list[str]](), list[list[str]]()
    for name in ("a" * 16, "b" * 16, ""):
        write_run(runs / (name or "c"), CONFIG, fingerprint=name)
        rows = ROW.findall(write_index(runs).read_text())
        shown.append(sorted(re.sub("<[^>]*>", "", re.findall(r"<td.*?</td>", row)[3]) for row, _ in rows))
        lines.append(sorted(re.sub("<[^>]*>", "", line).split(", ")[1] for _, line in rows))
    shutil.rmtree(runs / ("b" * 16))
    last = [row for row, _ in ROW.findall(write_index(runs).read_text()) if "a" * 16 in row]
    assert shown == [["digits"], both := ["digits (aaaaaaaa)", "digits (bbbbbbbb)"], ["digits", *both]]
    assert lines == shown
    assert len(last) == 1
    assert ">digits</bdi></td>" in last[0]


def test_the_page_says_that_a_run_has_lost_records(here: Path) -> None:
    metrics = write_run(here / "runs" / "a", CONFIG, test=0.5) / "metrics.jsonl"
    write_index(here / "runs")
    MetricsLog(metrics).close()
    checksum = RunFolder(metrics.parent).metrics_sum
    checksum.write_text(f"{'0' * 64} {metrics.stat().st_size}\n")
    assert ">finished,<br>lost metrics</td>" in write_index(here / "runs").read_text(), (
        "though metrics.jsonl is the same"
    )


def test_no_text_of_a_run_folder_is_interpreted_by_the_page(here: Path) -> None:
    hostile = '"><script>alert(1)</script>&|\n'
    run = write_run(here / "runs" / "a", CONFIG, test=0.5, dataset=hostile, fingerprint=hostile)
    summary = next((run / "evaluations").glob("*/summary.json"))
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "tta": hostile}))
    page = write_index(here / "runs").read_text()
    assert "<script" not in page
    assert page.count("&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;|") == 6, "each in a cell and below"


def test_the_tabs_of_pages_differ(here: Path) -> None:
    titles = []
    for folder in (here / "a" / "runs", here / "b" / "runs", here / "b" / "runs"):
        if not folder.exists():
            write_run(folder / "a", CONFIG)
        titles += re.findall("<title>(.*)</title>", write_index(folder).read_text())
    assert titles == ["Runs in a/runs", "Runs in b/runs", "Runs in b/runs"]
    page = here / "a" / "runs" / "index.html"
    page.write_text(page.read_text().replace("Runs in a/runs", "Runs of cifar-dist"))
    assert "Runs in a/runs" in write_index(page.parent).read_text(), "it replaces that of an earlier version"


def test_a_long_name_in_the_page_may_continue_in_the_next_line(here: Path) -> None:
    write_run(here / "lr=0.1+wd=1e-3.s0", CONFIG)
    assert "lr=<wbr>0.<wbr>1+<wbr>wd=<wbr>1e-<wbr>3.<wbr>s0" in write_index(here).read_text()


def test_a_short_name_is_broken_on_a_phone_only(here: Path) -> None:
    """A line may continue after a <wbr> even where white-space is nowrap."""
    write_run(here / "lr-0.1", CONFIG)
    assert "@media screen and (min-width: 641px) { .narrow, td.text.short wbr { display: none; } }" in (
        write_index(here).read_text()
    )


def test_what_is_wrong_with_a_damaged_run_widens_no_column(here: Path) -> None:
    (write_run(here / "a", CONFIG) / "config.toml").write_text("junk")
    page = write_index(here).read_text()
    heads = re.findall("<th[ >]", page)
    ((row, below),) = ROW.findall(page)
    cells = re.findall("<td[^>]*>", row)
    assert sum("narrow" not in cell for cell in cells) + 6 == len(heads), "on a desktop, where one cell is seven wide"
    assert sum("wide" not in cell for cell in cells) == 4, "on a phone: run, state, val %, test %"
    assert "td.problem { max-width: 0;" in page
    assert re.search(r'<td class="text wide problem" colspan="7">[^<]*/a/config\.toml[^<]+</td>', row)
    assert re.fullmatch(r'<td class="text soft" colspan="4">[^<]*/a/config\.toml[^<]+<br>[-:0-9 ]+ UTC</td>', below)


def test_a_phone_shows_the_cells_that_it_has_no_columns_for_in_a_line_below(here: Path) -> None:
    """So does a desktop whose reader has enlarged the page: what is not displayed cannot be found either."""
    write_run(here / "a", CONFIG, test=0.5)
    page = write_index(here).read_text()
    ((row, below),) = ROW.findall(page)
    hidden = [re.sub("<[^>]*>", "", cell) for cell in re.findall('<td class="[^"]*wide">(.*?)</td>', row)]
    assert hidden[:-1] == ["tiny-cnn", "digits", "4 of 4", "mirror", "2.0 min"]
    line = re.sub("<[^>]*>", "", below)
    assert line == f"tiny-cnn, digits, 4 of 4 epochs, TTA mirror, 2.0 min, {hidden[-1]} UTC"
    assert '<tr class="narrow"><td class="text soft" colspan="4">' in page
    assert "@media screen and (min-width: 641px) { .narrow, " in page
    assert "@media print, (max-width: 640px) {\n  .wide { display: none; }" in page, "paper does not scroll"


def test_only_a_folder_of_runs_gets_a_page_of_them_unasked(here: Path) -> None:
    write_run(here / "a", CONFIG)
    (here / "photos").mkdir()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        assert cli.run(["report", "a"]) == 0
        assert not (here / "index.html").exists()
        assert cli.run(["runs", "list", "."]) == 0
        assert (here / "index.html").exists()
        assert cli.run(["report", "a"]) == 0
    assert not warned, "a listing that ends early is closed"
