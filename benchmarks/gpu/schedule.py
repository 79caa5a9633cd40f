"""Run items inside a budget, several at a time where they may; none of them fails because another did.

But on several GPUs that cannot exchange anything, no item is tried that needs it: each would hang until its limit.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from gpu.bench import Bench, FailedError, Machine, SkippedError, UnfinishedError
from gpu.items import EXCHANGE, PARTS, Item
from gpu.record import Record, Result, Row

_PATIENCE = 3  # an item that takes so many times its estimate has failed
_LEAST = 90.0  # seconds before that: the first process on a machine reads libraries from a cold disk, and compiles


def run_items(items: Sequence[Item], bench: Bench, record: Record) -> None:
    """Run ``items``, record a row for each, and print both."""
    waiting = []
    for item in items:
        if record.passed(item.name):
            bench.found[item.name] = record.rows[item.name].found
            print(f"== {item.name}: passed in an earlier call", flush=True)
        else:
            waiting.append(item)
    bench.work.mkdir(parents=True, exist_ok=True)
    writing = threading.Lock()

    def work(item: Item) -> None:
        own = replace(bench, log=bench.work / f"{item.name.replace('/', '-')}.log")
        begin = time.monotonic()
        result, found = _run_item(item, own, record)
        seconds = time.monotonic() - begin
        with writing:
            _append(record.log(item.part), own)
            if bench.halt.is_set():
                return
            if result == "passed":
                bench.found[item.name] = found
            record.add(Row(item.name, item.part, result, round(seconds, 1), found, bench.machine.name))
            print(f"== {item.name}: {result.upper()} in {seconds:.0f} s: {found}", flush=True)

    for alone, group in _groups(waiting, bench.machine):
        with ThreadPoolExecutor(1 if alone else bench.at_once) as pool:
            try:
                for future in [pool.submit(work, item) for item in group]:
                    future.result()
            except BaseException:
                bench.halt.set()
                raise


def _groups(items: Iterable[Item], machine: Machine) -> Iterator[tuple[bool, Iterator[Item]]]:
    """Groups of items that follow each other, and whether each item of it runs alone.

    In each part, what runs alone comes first: on several GPUs, these are the items that one GPU cannot show.
    """
    ordered = sorted(items, key=lambda item: (PARTS.index(item.part), not item.runs_alone(machine)))
    return itertools.groupby(ordered, lambda item: item.runs_alone(machine))


def _append(log: Path, own: Bench) -> None:
    if own.log.is_file():
        with log.open("ab") as file:
            file.write(own.log.read_bytes())


def _run_item(item: Item, bench: Bench, record: Record) -> tuple[Result, str]:
    if bench.halt.is_set():
        return "skipped", "stopped before it began"
    exchange = record.rows.get(EXCHANGE)
    if exchange and exchange.result == "failed" and item.name != EXCHANGE and item.exchanges(bench.machine):
        return "skipped", f"the GPUs cannot exchange anything: {exchange.found}"
    left = bench.seconds_left()
    if left < (1 if bench.rehearse else item.seconds):
        return "skipped", f"out of time: it takes about {item.seconds:.0f} s and {max(left, 0):.0f} s are left"
    print(f"== {item.name}: about {item.seconds:.0f} s, {left:.0f} s left", flush=True)
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
