"""Write docs/results.md from run folders, never by hand: python docs/make_results.py runs/cpu-quick runs/demo ...

A run's row is told by its own files: config.toml, environment.json, metrics.jsonl and the evaluation that ended it.
A run that was stopped before its end goes into a table of its own. Rows of runs that are not named are kept, and so
is what stands below the heading "Notes".
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from make_recipes import head

from cifar_dist import recipe
from cifar_dist.errors import UserError
from cifar_dist.report.results import Result, duration, read_result
from cifar_dist.run_folder import RunFolder
from cifar_dist.tracking import metrics
from cifar_dist.tracking.table import EpochTable

DOCUMENT = Path(__file__).with_name("results.md")
INTRODUCTION = """# Results

Written by `docs/make_results.py` from run folders. `cifar10-jpeg` is CIFAR-10 as quality-75 JPEG, which costs about 3.3
points against the original files (the record holder's own script reaches 94.0 % on those and 90.7 % on these).
`benchmarks/cpu.sh` and `benchmarks/gpu.sh` make the runs.

"""
FINISHED = """## Finished

Accuracy is that of the final weights on the test split, with the test-time augmentation that is named.

| run | source | data | test | with TTA | val, plain | parameters | epochs | training time | on | torch |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
BEGUN = """
## Begun

Runs of a whole recipe that were stopped after a few epochs: what a machine gets in that time, and how they begin.

| run | source | data | val, plain, after each epoch | parameters | epochs | training time | on | torch |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def row(run: Path) -> tuple[bool, str]:
    """Whether the run is finished, and its line of the table.

    Raises:
        UserError: it was never evaluated.
    """
    result = read_result(run)
    facts, final = result.environment, result.final
    epochs = EpochTable(metrics.read(RunFolder(run).metrics)).rows()
    val = [f"{100 * epoch.val_accuracy:.2f}" for epoch in epochs if epoch.val_accuracy == epoch.val_accuracy]
    whole = len(epochs) if final else len(val)  # what was begun of the next epoch is not worth a mention
    last = [f"{result.parameters:,}", f"{whole} of {result.config.train.epochs}"]
    last += [duration(result.seconds), _hardware(result), facts["versions"]["torch"]]
    if final is None or final.accuracy is None:
        if not val:
            raise UserError(f"{run} was never evaluated; train it for an epoch first")
        cells = [facts["run"]["dataset"], ", ".join(val) + " %", *last]
    else:
        plain = f"{100 * result.val_accuracy:.2f} %" if result.val_accuracy is not None else ""
        cells = [final.data, f"{100 * final.accuracy:.2f} % of {final.samples:,}", final.tta, plain, *last]
    cells = [f"`{run.name}`", _source(run.name), *cells]
    return final is not None, "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _hardware(result: Result) -> str:
    facts = result.environment
    machine = " + ".join(sorted(set(facts["gpus"]))) or f"{facts['cores']} cores of {facts['cpu']}"
    return f"{facts['run']['processes']} x {facts['run']['wrapper']}, {facts['run']['precision']}, {machine}"


def _source(run: str) -> str:
    """What the recipe says of where it comes from; a run is told by its name, ``RECIPE`` or ``RECIPE.anything``."""
    names = {name.replace("/", "-"): name for name in recipe.shipped()}
    name = names.get(run.partition(".")[0])
    return head(name).source if name else ""


def main(runs: list[Path]) -> None:
    old = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    old, notes, said = old.partition("\n## Notes\n")
    tables: list[dict[str, str]] = []
    for part in (old.partition("## Begun")[0], old.partition("## Begun")[2]):
        tables.append({match[1]: match[0] for match in re.finditer(r"(?m)^\| `([^`]+)` \|.*$", part)})
    finished, begun = tables
    for run in runs:
        done, line = row(run)
        begun.pop(run.name, None)
        (finished if done else begun)[run.name] = line
    text = INTRODUCTION + FINISHED + "".join(f"{finished[name]}\n" for name in sorted(finished))
    if begun:
        text += BEGUN + "".join(f"{begun[name]}\n" for name in sorted(begun))
    DOCUMENT.write_text(text + notes + said, encoding="utf-8")
    print(f"wrote {DOCUMENT}: {len(finished)} finished, {len(begun)} begun")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
