"""Compare the shipped recipes and sweeps with docs/sources.toml and write docs/sources.md: python docs/make_sources.py

A recipe's head names each setting in which it differs from its source ("Differs:") or that the source does not give
("Chosen here:"). A statement holds for the recipes that have this one as their base, too.
"""

from __future__ import annotations

import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cifar_dist import recipe
from cifar_dist.config import Config, TransformConfig
from cifar_dist.config.settings import settings_of
from cifar_dist.config.toml_text import inline_toml
from cifar_dist.config.tree import flatten
from cifar_dist.sweeps import sweep_file

DOCUMENT = Path(__file__).with_name("sources.md")
SOURCES = Path(__file__).with_name("sources.toml")
BEGIN = "<!-- written by docs/make_sources.py: everything from here to the end of the file -->\n"

COMPARED = (
    *("data.hold_out", "augment.", "model.", "optim.", "schedule.", "average.", "eval.tta"),
    *("train.epochs", "train.batch_size", "train.label_smoothing"),
)
"""Settings that a source may decide; compared where it gives them, and otherwise stated as chosen here."""
OURS = ("model.name", "model.conv", "optim.decay_norms", "augment.transforms", "average.start", "average.recalibrate")
"""Settings among them that are how this system works; a source's silence about them says nothing."""
UNUSED: dict[str, object] = {
    "model.image_size": 0,
    "model.pretrained": "",
    "model.freeze": False,
    "model.unfreeze": 0.0,
    "optim.clip_norm": 0.0,
    "optim.sam_rho": 0.0,
    "optim.backbone_lr": 1.0,
    "optim.layer_decay": 1.0,
    "optim.betas": [0.9, 0.999],  # torch's default, and the next one
    "optim.eps": 1e-8,
    "optim.nesterov": False,
    "schedule.warmup": 0.0,
    "schedule.start": 0.0,
    "schedule.final": 0.0,
    "schedule.shape": "linear",
    "schedule.three_phase": False,
    "average.name": "none",
    "train.label_smoothing": 0.0,
    "eval.tta": "0",
    "eval.tta_below": 1.0,
}
"""What the silence of a source means."""
COUNTED = ("model.options.dropout", "model.options.stem", "model.options.stochastic_depth")
"""Options of a network that its parameters do not prove."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A recipe, or a row of a sweep, beside its source.

    Attributes:
        figure: the accuracy that the source reports.
        given: what the source gives of it that it does not give of another one, by dotted key.
        like: the recipe that the source's other settings are those of; empty for none.
        differing: settings of which the source gives another value.
        chosen: settings that the source does not give.
        heads: comments that may explain them, its own first.
        unlike: words for differences that are no settings, which its own head must have.
    """

    name: str
    figure: str
    given: Settings
    like: str
    differing: tuple[str, ...]
    chosen: tuple[str, ...]
    heads: tuple[str, ...]
    unlike: tuple[str, ...] = ()

    @property
    def unexplained(self) -> list[str]:
        """Settings that no head names, and other differences that its own does not."""
        kinds = (("Differs", self.differing), ("Chosen here", self.chosen))
        named = {kind: [key for head in self.heads for key in _named(_statement(head, kind))] for kind, _ in kinds}
        missing = [
            (kind, key) for kind, keys in kinds for key in keys if not any(_covers(name, key) for name in named[kind])
        ]
        missing += [("Differs", words) for words in self.unlike if words not in _statement(self.heads[0], "Differs")]
        return [f"{self.name}: {what} is not named under '{kind}:' in the head" for kind, what in missing]

    @property
    def stale(self) -> list[str]:
        """Statements of its own head about settings that neither differ nor are chosen."""
        kinds = (("Differs", self.differing), ("Chosen here", self.chosen))
        return [
            f"{self.name}: the head says '{kind}: {name}', which is not so"
            for kind, keys in kinds
            for name in _named(_statement(self.heads[0], kind))
            if not any(_covers(name, key) for key in keys)
        ]


def problems() -> list[str]:
    """One line for each recipe or sweep without a source, unexplained difference, and statement that is not so."""
    sources = _read()
    known = {*sources["recipes"], *sources["sweeps"], *sources["own"]}
    shipped = {**dict.fromkeys(recipe.shipped(), "recipes"), **dict.fromkeys(sweep_file.shipped(), "sweeps")}
    found = [
        f'{name}: no entry in docs/{SOURCES.name}; add "{name}" = "what it is for" below [own], or '
        f'[{shipped[name]}."{name}"] with what its source says, and run: make tables'
        for name in sorted(shipped.keys() - known)
    ]
    found += [f"{name}: not shipped; remove it from docs/{SOURCES.name}" for name in sorted(known - shipped.keys())]
    entries = _recipe_entries(sources)
    found += [line for entry in entries.values() for line in (*entry.unexplained, *entry.stale)]
    rows = _sweep_entries(sources, entries)
    return found + [line for _, study in rows for entry in study for line in entry.unexplained]


def tables() -> str:
    """A table of the recipes of each source, one of the studies' rows, and one of the sweeps without a source."""
    sources = _read()
    entries = _recipe_entries(sources)
    columns = ("reported there", "as there", "differs", "not given there, chosen here")
    parts = []
    for source, title in sources["sources"].items():
        rows = [
            (f"`{name}`{_where(sources['recipes'][name])}", *_cells(entry))
            for name, entry in entries.items()
            if sources["recipes"][name]["source"] == source
        ]
        parts.append(f"## {title}\n\n" + _table(("recipe", *columns), rows))
    rows = [
        (f"`{name}`, {entry.name}", *_cells(entry))
        for name, study in _sweep_entries(sources, entries)
        for entry in study
        if entry.given  # the others are recipes
    ]
    parts.append("## Rows of studies that are not recipes\n\n" + _table(("sweep, row", *columns), rows))
    wished = [
        (f"`{name}`", sources["sources"][entry["wished"]], str(len(sweep_file.load(name).rows)))
        for name, entry in sorted(sources["sweeps"].items())
        if "wished" in entry
    ]
    parts.append("## Wished for there\n\n" + _table(("sweep", "wished for by", "rows"), wished))
    own = [(f"`{name}`", why) for name, why in sorted(sources["own"].items())]
    parts.append("## Without a source\n\n" + _table(("recipe or sweep", "what it is for"), own))
    return "\n".join(parts)


def up_to_date(document: str) -> str:
    """``document``, the text of docs/sources.md, with its tables made anew."""
    start, begin, _ = document.partition(BEGIN)
    if not begin:
        raise ValueError(f"{DOCUMENT.name} has lost its line {BEGIN.strip()}; put it before the first table")
    return f"{start}{BEGIN}\n{tables()}"


# ---- comparison -------------------------------------------------------------------------------------------------


def _read() -> dict[str, Any]:
    return tomllib.loads(SOURCES.read_text(encoding="utf-8"))


def _recipe_entries(sources: Mapping[str, Any]) -> dict[str, Entry]:
    found = {}
    for name, said in sources["recipes"].items():
        config = recipe.load(name)
        given = _all_given(sources, said)
        differing, chosen = _compare(config, given)
        differing += ["parameters"] if not _has_parameters(config, said.get("parameters")) else []
        own = dict(flatten(said.get("settings", {})))
        own |= {"parameters": said["parameters"]} if "parameters" in said else {}
        like = said.get("like", "")
        unlike = tuple(said.get("unlike", ()))
        heads = tuple(_heads(name))
        found[name] = Entry(name, said["figure"], own, like, tuple(differing), tuple(chosen), heads, unlike)
    return found


def _sweep_entries(sources: Mapping[str, Any], of_recipes: Mapping[str, Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Yield each study of a source and its rows."""
    for name in sweep_file.shipped():
        study = sources["sweeps"].get(name)
        if study is None or "wished" in study:
            continue
        head = _head((sweep_file.SHIPPED / f"{name}.toml").read_text(encoding="utf-8"))
        rows = []
        for row in sweep_file.load(name).rows:
            base, config = row.runs[0].words[0], row.runs[0].config
            said = study.get("rows", {}).get(row.name)
            if said is None:  # the row is a recipe
                entry = of_recipes[base]
                rows.append(Entry(row.name, entry.figure, {}, base, entry.differing, entry.chosen, entry.heads))
                continue
            like = said.get("like", study.get("like", ""))
            own = dict(flatten(said["settings"]))
            differing, chosen = _compare(config, {**_all_given(sources, sources["recipes"][like]), **own})
            heads = (head, *_heads(base))
            rows.append(Entry(row.name, f"test {said['figure']} %", own, like, tuple(differing), tuple(chosen), heads))
        yield name, rows


def _all_given(sources: Mapping[str, Any], said: Mapping[str, Any]) -> Settings:
    """What a source gives of a recipe, with what it gives of the one that this is like."""
    below = _all_given(sources, sources["recipes"][said["like"]]) if "like" in said else {}
    return {**below, **dict(flatten(said.get("settings", {})))}


def _compare(config: Config, given: Settings) -> tuple[list[str], list[str]]:
    """Return the settings of which the source gives another value, and those that it does not give."""
    settings = settings_of(config)
    unused = {**UNUSED, **_defaults_of_transforms()}
    relevant = {
        key: value for key, value in given.items() if key in settings or key.rpartition(".")[0] not in _absent(settings)
    }
    differing = [key for key, value in relevant.items() if not _equal(key, settings.get(key), value)]
    chosen = [
        key
        for key, value in settings.items()
        if key not in given
        and key.startswith(COMPARED)
        and key not in OURS
        and (not key.startswith("model.options.") or key in COUNTED)
        and not (key in unused and _equal(key, value, unused[key]))
    ]
    return differing, chosen


def _defaults_of_transforms() -> Settings:
    kinds = TransformConfig.variants.items()
    return {f"augment.{name}.{field.name}": field.default for name, kind in kinds for field in fields(kind)}


def _absent(settings: Settings) -> set[str]:
    """Transforms that a recipe does not have; that it does not is one difference."""
    return {f"augment.{name}" for name in TransformConfig.variants if name not in settings["augment.transforms"]}


def _equal(key: str, ours: object, theirs: object) -> bool:
    if isinstance(ours, Sequence) and isinstance(theirs, Sequence) and not isinstance(ours, str):
        if key == "augment.transforms":
            ours, theirs = sorted(ours), sorted(theirs)
        return len(ours) == len(theirs) and all(_equal("", a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return abs(ours - theirs) <= 1e-3 * abs(theirs)
    return ours == theirs


def _has_parameters(config: Config, count: float | None) -> bool:
    """Whether the network has the parameters of its source: exactly, or rounded to a tenth of a million."""
    if count is None:
        return True
    classes = 100 if config.data.path.endswith("100") else 10
    ours = _parameters(config.model.name, classes, inline_toml(config.model.options))
    return ours == count if isinstance(count, int) else round(ours / 1e6, 1) == count


@functools.cache
def _parameters(network: str, classes: int, options: str) -> int:
    """Count the parameters of a network; its options are an inline table of TOML."""
    import torch

    from cifar_dist.models import build

    with torch.device("meta"):
        built = build(network, classes=classes, options=tomllib.loads(f"options = {options}")["options"])
    return sum(parameter.numel() for parameter in built.parameters())


# ---- heads ------------------------------------------------------------------------------------------------------


def _heads(name: str) -> Iterator[str]:
    """Yield the head of a recipe, then that of its base, and so on."""
    text = recipe.recipe_path(name).read_text(encoding="utf-8")
    yield _head(text)
    if base := tomllib.loads(text).get("base"):
        yield from _heads(base)


def _head(text: str) -> str:
    comment = re.match(r"(?:#.*\n)+", text)
    return " ".join(line.removeprefix("#").strip() for line in comment[0].splitlines()) if comment else ""


def _statement(head: str, kind: str) -> str:
    """The sentence of a head that begins with ``kind``, without it; empty if there is none."""
    found = re.search(rf"{kind}: (.+?)\.(?= [A-Z]|$)", head)
    return found[1] if found else ""


def _named(statement: str) -> list[str]:
    """The settings, or sections, that a statement names outside its explanations."""
    outside = re.sub(r"\([^)]*\)", "", statement).replace("the order of augment.transforms", "")
    return re.findall(r"[a-z]+(?:\.[a-z_]+)+|\b(?:augment|optim|schedule|parameters)\b", outside)


def _covers(name: str, key: str) -> bool:
    return key == name or key.startswith(f"{name}.")


# ---- tables -----------------------------------------------------------------------------------------------------


def _cells(entry: Entry) -> tuple[str, str, str, str]:
    agreed = [f"`{key}` {_shown(key, value)}" for key, value in entry.given.items() if key not in entry.differing]
    same = ", ".join([*([f"as `{entry.like}`"] if entry.like else []), *agreed])
    # Statements of a base appear at the base.
    own = entry.heads[0] if entry.given or not entry.like else ""
    return entry.figure, same, _statement(own, "Differs"), _statement(own, "Chosen here")


def _shown(key: str, value: object) -> str:
    if key == "parameters" and isinstance(value, float):  # rounded to a tenth of a million
        return f"{value} M"
    return f"{value:,}" if type(value) is int and value >= 10_000 else inline_toml(value).replace('"', "")


def _where(said: Mapping[str, Any]) -> str:
    return f" ({said['where']})" if "where" in said else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if found := problems():
        sys.exit("\n".join(found))
    DOCUMENT.write_text(up_to_date(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
