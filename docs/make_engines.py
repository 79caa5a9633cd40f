"""Write the table of engines in docs/launching.md from what they declare: python docs/make_engines.py"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from cifar_dist.config import Config
from cifar_dist.config.choice import is_root
from cifar_dist.distributed.data_parallel import DataParallel
from cifar_dist.distributed.deepspeed_zero import DeepSpeedZero, DeepSpeedZero3
from cifar_dist.distributed.engine import Engine
from cifar_dist.distributed.fixed_parts import FixedParts
from cifar_dist.distributed.fully_sharded import FullySharded

DOCUMENT = Path(__file__).with_name("launching.md")
BEGIN = "<!-- written by docs/make_engines.py: the table of engines -->\n"
END = "<!-- end of the table of engines -->\n"
COLUMNS: dict[str, type[Engine]] = {
    "one process, DDP": DataParallel,
    "with `train.parts`": FixedParts,
    "ZeRO-1, ZeRO-2": DeepSpeedZero,
    "ZeRO-3": DeepSpeedZero3,
    "FSDP": FullySharded,
}


def table() -> str:
    """Markdown: what a process holds a shard of only, and a row for each setting that an engine refuses."""
    lines = [_row("", *COLUMNS), _row(*["---"] * (1 + len(COLUMNS)))]
    lines.append(_row("sharded", *(engine.shards for engine in COLUMNS.values())))
    for key in dict.fromkeys(limit.key for engine in COLUMNS.values() for limit in engine.limits):
        rows: dict[tuple[str, ...], list[str]] = {}  # values that the same engines refuse share a row
        for setting, value in _settings(key):
            answers = tuple("no" if _refuses(engine, key, value) else "yes" for engine in COLUMNS.values())
            if "no" in answers:
                rows.setdefault(answers, []).append(setting)
        lines += [_row(" or ".join(settings), *answers) for answers, settings in rows.items()]
    return "\n".join(lines) + "\n"


def _settings(key: str) -> Iterator[tuple[str, object]]:
    """Each value that a setting can have, and the setting with it; one value where it is a number, or true."""
    section, _, name = key.partition(".")
    owner = get_type_hints(Config)[section]
    if is_root(owner) and owner.picked_by == name:
        values = [*owner.variants]
    else:
        known = {field.name for field in dataclasses.fields(owner)}
        kind = get_type_hints(owner)[name] if name in known else float
        values = [*get_args(kind)] if get_origin(kind) is Literal else []
    yield from ((f'`{key} = "{value}"`', value) for value in values)
    if not values:
        yield f"`{key}`", 1


def _refuses(engine: type[Engine], key: str, value: object) -> bool:
    return any(limit.key == key and limit.refuses(value) for limit in engine.limits)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def up_to_date(document: str) -> str:
    """``document``, the text of docs/launching.md, with its table made anew.

    Raises:
        ValueError: it has lost one of the lines around the table.
    """
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{DOCUMENT.name} has lost the lines {BEGIN.strip()} and {END.strip()}; restore them")
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


if __name__ == "__main__":
    DOCUMENT.write_text(up_to_date(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
