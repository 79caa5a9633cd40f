"""Write docs/results.md from run folders, never by hand: python docs/make_results.py runs/cpu-quick runs/demo ...

With ``--to PAGE`` before the runs, another page is written.

A row is computed from the files of its run: config.toml, environment.json, metrics.jsonl and the final evaluation. Runs
that were stopped before their end are listed in a separate table. Rows of other runs are kept, and so is everything
below the heading "Notes".
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_dist.errors import UserError
from cifar_dist.files.reading import read_json
from cifar_dist.formatting import duration, percent
from cifar_dist.report.results import read_result
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import metrics
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.table import EpochTable

DOCUMENT = Path(__file__).with_name("results.md")
INTRODUCTION = """# Results

`benchmarks/cpu.sh CIFAR10` trains `custom-resnet.3-epochs` and `speedrun-94.s0` to `.s2`, and repeats the unfinished
run; `benchmarks/gpu.sh CIFAR10 OUT` trains eleven recipes on a GPU, as far as its time allows. The notes below describe
the other rows. `docs/make_results.py` writes this page from run folders. The dataset `cifar10-jpeg` is CIFAR-10 stored
as quality-75 JPEG, of whose test images 5,000 have labels: one accuracy has a standard error of about 0.4 points. JPEG
lowers accuracy by about 3.1 points: the record holder's own script reaches 94.0 % on the original files and 90.9 % on
these.

"""
FINISHED = """## Finished

"test" is the accuracy of the final weights on the test split, with the test-time augmentation in the next column. "val"
is the validation accuracy without it. [sources.md](sources.md) has the figures of each recipe's source.

| run | data | test | TTA | val | parameters | epochs | training time | hardware | torch |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
UNFINISHED = """
## Unfinished

Runs that were stopped after the first epochs of their recipe, to show its first accuracies and its speed.

| run | data | val after each epoch | parameters | epochs | training time | hardware | torch |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def row(run: RunFolder) -> tuple[bool, str]:
    """Return whether the run is finished, and its row of the table.

    Raises:
        UserError: the run was never evaluated.
    """
    result, environment = read_result(run), read_json(run.environment)
    final = result.final
    epochs = EpochTable(metrics.read(run.metrics)).rows()
    val = [f"{100 * epoch.val_accuracy:.2f}" for epoch in epochs if epoch.val_accuracy == epoch.val_accuracy]
    completed = len(epochs) if final else len(val)  # without an epoch that was only begun
    last = [f"{result.parameters:,}", f"{completed} of {result.config.train.epochs}"]
    last += [duration(result.seconds), _hardware(result.facts, environment), environment["versions"]["torch"]]
    if final is None or final.accuracy is None:
        if not val:
            raise UserError(f"{run.path} was never evaluated; train it for an epoch first")
        cells = [result.facts.dataset, ", ".join(val) + " %", *last]
    else:
        plain = percent(result.val_accuracy) if result.val_accuracy is not None else ""
        cells = [final.data, f"{percent(final.accuracy)} of {final.samples:,}", final.tta, plain, *last]
    cells = [f"`{run.name}`", *cells]
    return final is not None, "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _hardware(facts: RunFacts, environment: Mapping[str, Any]) -> str:
    machine = " + ".join(sorted(set(environment["gpus"]))) or f"{environment['cores']} cores of {environment['cpu']}"
    return f"{facts.processes} x {facts.wrapper}, {facts.precision}, {machine}"


def main(runs: list[RunFolder], document: Path = DOCUMENT) -> None:
    old = document.read_text(encoding="utf-8") if document.exists() else ""
    old, heading, notes = old.partition("\n## Notes\n")
    tables: list[dict[str, str]] = []
    for part in (old.partition("## Unfinished")[0], old.partition("## Unfinished")[2]):
        tables.append({match[1]: match[0] for match in re.finditer(r"(?m)^\| `([^`]+)` \|.*$", part)})
    finished, unfinished = tables
    for run in runs:
        done, line = row(run)
        unfinished.pop(run.name, None)
        (finished if done else unfinished)[run.name] = line
    text = INTRODUCTION + FINISHED + "".join(f"{finished[name]}\n" for name in sorted(finished))
    if unfinished:
        text += UNFINISHED + "".join(f"{unfinished[name]}\n" for name in sorted(unfinished))
    document.write_text(text + heading + notes, encoding="utf-8")
    print(f"wrote {document}: {len(finished)} finished, {len(unfinished)} unfinished")


if __name__ == "__main__":
    words = sys.argv[1:]
    page, names = (Path(words[1]), words[2:]) if words[:1] == ["--to"] else (DOCUMENT, words)
    main([RunFolder(Path(name)) for name in names], page)
