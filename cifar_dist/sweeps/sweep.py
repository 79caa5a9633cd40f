"""A sweep file becomes named runs, each built and checked before the first of them starts::

    recipe = "small-resnet/baseline"     # or recipes = [...]: a row for each
    seeds = 3                            # 0, 1, 2; or a list

    [settings]                           # of every run
    train.epochs = 34

    [grid]                               # a row for every combination
    optim.lr = [0.01, 0.001]

    [[rows]]                             # and one more row for each of these
    name = "sgd"
    optim.name = "sgd"

A row is what is compared; it has a run for each seed, ``SWEEP.ROW.sSEED``. A name is made from the row alone, so rows
that are added later rename none, and what was trained is found again.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.config.named_items import inline_toml
from cifar_dist.errors import UserError, nearest
from cifar_dist.run_folder import RunFolder

SHIPPED = recipe.SHIPPED / "sweeps"

_KEYS = ("recipe", "recipes", "seeds", "settings", "grid", "rows")
_NAMED_BY_THE_SWEEP = {"run.name": "runs are named after the sweep and the row", "run.seed": "give seeds = [...]"}
_MOST_RUNS = 10_000  # a slip of the finger, not a sweep

Settings = dict[str, Any]  # values of TOML by dotted key


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: ``SWEEP.ROW.sSEED``.
        words: what ``cifar-dist train`` is given.
        config: what these words mean.
    """

    name: str
    words: tuple[str, ...]
    config: Config

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.config.run.dir) / self.name)


@dataclass(frozen=True)
class Row:
    """What is compared with other rows: the runs of one set of settings, that differ in their seed."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Sweep:
    """A whole sweep, in the order of its file."""

    name: str
    rows: tuple[Row, ...]

    @property
    def runs(self) -> list[Run]:
        """In the order they are started: the first seed of all rows, then the second."""
        return [run for seed in zip(*(row.runs for row in self.rows), strict=True) for run in seed]


def shipped() -> list[str]:
    """Names of the sweeps that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load(sweep: str, overrides: Sequence[str] = (), seeds: int | None = None) -> Sweep:
    """Read a sweep and build the config of every run.

    Args:
        sweep: a shipped name or a TOML path.
        overrides: ``--section.field VALUE`` words that hold for all runs.
        seeds: how many, instead of the file's.

    Raises:
        UserError: anything that no run could be made of, with the row it stands in.
    """
    path = _path(sweep)
    where = str(path)
    tree = _read(path)
    for key in tree:
        if key not in _KEYS:
            is_setting = key.partition(".")[0] in {section.name for section in fields(Config)}
            hint = "settings of all runs go into [settings]" if is_setting else nearest(key, _KEYS)
            raise UserError(f"{where}: a sweep has no '{key}'; {hint}")
    given = recipe.parse_overrides(overrides)
    _refuse_reserved(given, "the command line")
    settings = _settings(tree.get("settings", {}), f"{where} [settings]")
    found = list(_rows(tree, where))
    taken = range(seeds) if seeds else _seeds(tree.get("seeds", 1), where)
    if len(found) * len(taken) > _MOST_RUNS:
        raise UserError(f"{where} makes {len(found) * len(taken):,} runs; more than {_MOST_RUNS:,} is no sweep")
    rows = []
    for name, base, own in found:
        if fixed := sorted(own.keys() & given.keys()):
            raise UserError(f"the command line: --{fixed[0]} is what {where} varies; leave it, or change the file")
        words = [base, *(_word(key, value) for key, value in {**settings, **own}.items()), *overrides]
        row_where = f"{where} row '{name}'{' with the settings of the command line' if overrides else ''}"
        rows.append(Row(name, tuple(_run(f"{path.stem}.{name}.s{seed}", seed, words, row_where) for seed in taken)))
    _refuse_one_name(rows, where)
    return Sweep(path.stem, tuple(rows))


# ---- the file ---------------------------------------------------------------------------------------------------


def _path(sweep: str) -> Path:
    if sweep in shipped():
        return SHIPPED / f"{sweep}.toml"
    if sweep.endswith(".toml"):
        return Path(sweep)
    raise UserError(f"no sweep is called '{sweep}'; {nearest(sweep, shipped())} (or give the path of a .toml)")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no sweep file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not readable as TOML: {error}") from None


def _rows(tree: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, Settings]]:
    """(name, recipe, own settings) of each row: recipes x grid, then the named ones."""
    base, bases, named = tree.get("recipe", ""), tree.get("recipes", []), tree.get("rows", [])
    if not isinstance(base, str):
        raise UserError(f'{where}: recipe is {base!r}; give one name or path, or recipes = ["...", "..."]')
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases) or (base and bases):
        raise UserError(f'{where}: give recipe = "..." or recipes = ["...", "..."], names or paths')
    if not isinstance(named, list) or not all(isinstance(row, dict) for row in named):
        raise UserError(f"{where}: rows are written [[rows]], with two brackets, each with a name")
    grid = _settings(tree.get("grid", {}), f"{where} [grid]")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where} [grid]: {key} is {values!r}; give a list of values, or move it to [settings]")
    if math.prod(len(values) for values in grid.values()) > _MOST_RUNS:
        raise UserError(f"{where} [grid] makes more than {_MOST_RUNS:,} rows; that is no sweep")
    if bases or grid or not named:
        for one in bases or [_needed(base, where)]:
            for values in itertools.product(*grid.values()):
                own = dict(zip(grid, values, strict=True))
                yield _row_name(one if bases or not grid else "", own), one, own
    for number, row in enumerate(named, 1):
        name = row.get("name")
        if not isinstance(name, str):
            raise UserError(f'{where}: row {number} of [[rows]] has no name; give it one: name = "..."')
        own = _settings({k: v for k, v in row.items() if k not in ("name", "recipe")}, f"{where} row '{name}'")
        yield name, _needed(row.get("recipe", base), f"{where} row '{name}'"), own


def _needed(base: object, where: str) -> str:
    if not isinstance(base, str) or not base:
        raise UserError(f'{where}: which recipe? recipe = "NAME", a shipped one or the path of a .toml')
    return base


def _settings(tree: object, where: str) -> Settings:
    """Settings by dotted key. ``optim.lr``, ``"optim.lr"`` and a table ``optim`` are the same."""
    if not isinstance(tree, dict):
        raise UserError(f"{where} is {tree!r}; it is a table of settings: optim.lr = ...")
    try:
        flat = dict(recipe.flatten(tree))
    except RecursionError:
        raise UserError(f"{where} is nested too deeply; settings are written section.field = ...") from None
    for key in flat:
        nested: dict[str, Any] = {key.split(".")[-1]: None}
        for part in reversed(key.split(".")[:-1]):
            nested = {part: nested}
        recipe.check_keys(nested, where=where)
    _refuse_reserved(flat, where)
    return flat


def _seeds(value: object, where: str) -> Sequence[int]:
    if type(value) is int and 1 <= value <= _MOST_RUNS:
        return range(value)
    if isinstance(value, list) and value and all(type(seed) is int for seed in value) and len(set(value)) == len(value):
        return value
    raise UserError(f"{where}: seeds is {value!r}; give how many, or a list of different ones such as [0, 1, 2]")


def _refuse_reserved(settings: Settings, where: str) -> None:
    for key, instead in _NAMED_BY_THE_SWEEP.items():
        if key in settings:
            raise UserError(f"{where}: {key} cannot be set in a sweep; {instead}")


# ---- the runs ---------------------------------------------------------------------------------------------------


def _row_name(base: str, own: Settings) -> str:
    """``RECIPE+lr=0.01+widths=64_128``: the shortest keys that tell the settings apart."""
    short = [key.rpartition(".")[2] for key in own]
    keys = short if len(set(short)) == len(short) else list(own)
    parts = [f"{key}={_safe(value)}" for key, value in zip(keys, own.values(), strict=True)]
    return "+".join([*([Path(base.removesuffix(".toml")).name] if base else []), *parts])


def _safe(value: object) -> str:
    """A value as part of a folder's name."""
    text = "_".join(map(_safe, value)) if isinstance(value, list) else _text(value)
    return re.sub(r"[^A-Za-z0-9_.+=-]+", "-", text)


def _text(value: object) -> str:
    return value if isinstance(value, str) else inline_toml(value)


def _word(key: str, value: object) -> str:
    """``--key=VALUE``, from which :func:`recipe.parse_overrides` gets the same value."""
    if key.startswith("model.options.") and isinstance(value, str):  # no field declares its type: "3" is not 3
        return f"--{key}={inline_toml(value)}"
    return f"--{key}={_text(value)}"


def _run(name: str, seed: int, words: Sequence[str], where: str) -> Run:
    base, *settings = words
    settings += [f"--run.name={name}", f"--run.seed={seed}"]
    try:
        config = recipe.load(base, settings)
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('the command line: ')}") from None
    return Run(name, (base, *settings), config)


def _refuse_one_name(rows: Sequence[Row], where: str) -> None:
    """Two rows in one folder; on some file systems upper and lower case are the same."""
    seen: set[str] = set()
    for row in rows:
        if row.name.casefold() in seen:
            raise UserError(f"{where}: two rows are called '{row.name}'; give each a name of its own in [[rows]]")
        seen.add(row.name.casefold())
