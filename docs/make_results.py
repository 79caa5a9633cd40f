"""Write docs/results.md from run folders, never by hand: python docs/make_results.py runs/cpu-quick runs/demo ...

A run's row is told by its own files: config.toml, environment.json, metrics.jsonl and the evaluation that ended it.
Rows of runs that are not named are kept as they are.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cifar_dist.errors import UserError
from cifar_dist.report.results import duration, read_result

DOCUMENT = Path(__file__).with_name("results.md")
HEAD = """# Results

Written by `docs/make_results.py` from run folders. Accuracy is that of the final weights on the test split, with the
test-time augmentation that is named; `cifar10-jpeg` is CIFAR-10 as quality-75 JPEG, which costs about 3.3 points
against the original files (the record holder's own script reaches 94.0 % on those and 90.7 % on these).

| recipe | data | test | with TTA | val, plain | parameters | epochs | training time | on | torch |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def row(run: Path) -> str:
    """One line of the table.

    Raises:
        UserError: the run is not finished.
    """
    result = read_result(run)
    final, facts = result.final, result.environment
    if final is None or final.accuracy is None:
        raise UserError(f"{run} has no evaluation of its final weights; finish it first")
    hardware = " + ".join(sorted(set(facts["gpus"]))) or f"{facts['cores']} cores of {facts['cpu']}"
    on = f"{facts['run']['processes']} x {facts['run']['wrapper']}, {facts['run']['precision']}, {hardware}"
    cells = [
        f"`{run.name}`",
        final.data,
        f"{100 * final.accuracy:.2f} % of {final.samples:,}",
        final.tta,
        f"{100 * result.val_accuracy:.2f} %" if result.val_accuracy is not None else "",
        f"{result.parameters:,}",
        str(result.config.train.epochs),
        duration(result.seconds),
        on,
        facts["versions"]["torch"],
    ]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def main(runs: list[Path]) -> None:
    old = DOCUMENT.read_text(encoding="utf-8").splitlines() if DOCUMENT.exists() else []
    rows = {match[1]: line for line in old if (match := re.match(r"\| `([^`]+)` \|", line))}
    rows |= {run.name: row(run) for run in runs}
    DOCUMENT.write_text(HEAD + "".join(f"{rows[name]}\n" for name in sorted(rows)), encoding="utf-8")
    print(f"wrote {DOCUMENT}: {len(rows)} rows")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
