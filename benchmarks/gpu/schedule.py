"""Run items one after the other inside a budget; none of them stops the others."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Sequence

from bench import Bench, FailedError, SkippedError, UnfinishedError
from items import Item
from record import Record, Result, Row

_PATIENCE = 3  # an item that takes so many times its estimate has failed
_LEAST = 90.0  # seconds before that: the first process on a machine reads libraries from a cold disk, and compiles


def run_items(items: Sequence[Item], bench: Bench, record: Record) -> None:
    """Run ``items`` in order, record a row for each, and print both."""
    for item in items:
        if record.passed(item.name):
            print(f"== {item.name}: passed in an earlier call", flush=True)
            continue
        begin = time.monotonic()
        result, found = _run_item(item, bench, record)
        seconds = time.monotonic() - begin
        record.add(Row(item.name, item.part, result, round(seconds, 1), found, bench.machine.name))
        print(f"== {item.name}: {result.upper()} in {seconds:.0f} s: {found}", flush=True)


def _run_item(item: Item, bench: Bench, record: Record) -> tuple[Result, str]:
    left = bench.seconds_left()
    if left < (1 if bench.rehearse else item.seconds):
        return "skipped", f"out of time: it takes about {item.seconds:.0f} s and {max(left, 0):.0f} s are left"
    print(f"== {item.name}: about {item.seconds:.0f} s, {left:.0f} s left", flush=True)
    bench.log = record.log(item.part)
    bench.limit = math.inf if item.open_ended else max(_LEAST, _PATIENCE * item.seconds)
    try:
        return "passed", item.work(bench)
    except SkippedError as why:
        return "skipped", str(why)
    except UnfinishedError as how_far:
        return "unfinished", str(how_far)
    except FailedError as why:
        return "failed", str(why)
    except Exception as error:  # a mistake in an item must not hide the results of the others
        with bench.log.open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        return "failed", f"{type(error).__name__}: {error}"
