"""Print the settings of a config as one types them, from the dataclasses that validate them."""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterator

from cifar_dist.config.choice import Choice, field_names, is_root
from cifar_dist.config.documentation import documented_fields, purpose
from cifar_dist.config.named_items import item_keys, item_root
from cifar_dist.config.section import Section, key_of
from cifar_dist.config.toml_text import option
from cifar_dist.errors import UserError, nearest

WIDTH = 79
_COLUMN = 33  # where the explanation of a line begins

_COMMON = {
    "run.name": "name of the run folder",
    "data.path": "packed dataset",
    "model.name": "network",
    "optim.name": "optimizer",
    "optim.lr": "peak learning rate",
    "schedule.name": "learning rate over time",
    "train.epochs": "times that each sample is seen",
    "train.batch_size": "samples of one step, over all processes",
    "train.precision": "no, auto, bf16, fp16 or int8",
    "eval.tta": "views of the final evaluation",
    "tracking.wandb": "disabled, offline or online",
}

_GRAMMAR = """\
Settings are written --section.field VALUE or --section.field=VALUE:
  number, text   --optim.lr 0.05   --run.name first
  true, false    --run.fresh true   --run.fresh false   --run.fresh is true
  list           --augment.mean 0.5,0.4,0.4   --augment.mean "[0.5, 0.4, 0.4]"
  option         --model.options.widths "[64, 128]", an option of the model
  transform      --augment.crop.pad 2, a transform of the list"""


def overview(config: Section) -> str:
    """Describe how settings are written, the common ones with their values, and the sections.

    Args:
        config: the tree of sections.
    """
    lines = [_GRAMMAR, "", "Common settings, with the values of the recipe:"]
    lines += [_line(option(key, _value(config, key)), text) for key, text in _COMMON.items()]
    lines += ["", "Sections; --help SECTION lists all of its settings:"]
    for name in field_names(type(config)):
        section = getattr(config, name)
        picked = "".join(f"{name}.{by} {getattr(section, by)}: " for by in _pickers(section))
        first = " ".join(purpose(type(section)).partition("\n\n")[0].replace("``", "").split())
        lines.append(f"  --help {name:<12}{textwrap.shorten(picked + first, WIDTH - 21, placeholder=' ...')}")
    return "\n".join(lines)


def describe(config: Section, key: str) -> str:
    """Describe all settings of a section, or of one transform, or a single setting.

    Args:
        config: the tree of sections.
        key: ``optim``, ``augment.crop`` or ``optim.lr``.

    Raises:
        UserError: no such section or setting.
    """
    key = key.removeprefix("--").replace("-", "_")
    name, _, rest = key.partition(".")
    if name not in field_names(type(config)):
        raise UserError(f"--help {key}: unknown section; {nearest(name, field_names(type(config)))}")
    blocks = list(_blocks(getattr(config, name), name))
    if not rest:
        section = getattr(config, name)
        texts = [_paragraph(purpose(type(section))), *(text for _, text in blocks), *_others(section, name)]
        return "\n\n".join(filter(None, texts))
    chosen = [text for shown, text in blocks if shown == key or shown.startswith(f"{key}.")]
    if not chosen:
        raise UserError(f"--help {key}: no such setting here; {nearest(key, [shown for shown, _ in blocks])}")
    return "\n\n".join(chosen)


def _blocks(section: Section, path: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) of each setting of a section: a line that can be typed, and its description."""
    documents = documented_fields(type(section))
    for field in dataclasses.fields(section):
        value, key = getattr(section, field.name), f"{path}.{key_of(field.name)}"
        if field.name == section.named_items:
            value = [dataclasses.asdict(item) for item in value]
        document = documents.get(field.name)
        kind = _names(section, field.name) or (_kind(document.annotation) if document else "value")
        words = option(key, value) if value is not None else f"--{key}"  # TOML has no null
        text = _paragraph(document.text if document else "", indent=6)
        yield key, "\n".join(filter(None, [_line(words, f"[{kind}]"), text]))
    if section.named_items:
        items = getattr(section, section.named_items)
        keys = item_keys([dataclasses.asdict(item) for item in items], section.named_items)
        for item_key, item in zip(keys, items, strict=True):
            if item_key.isidentifier():  # of several with one name, none can be set alone
                own = list(_blocks(item, f"{path}.{item_key}"))
                yield from (block for block in own if block[0] != f"{path}.{item_key}.name")


def _others(section: Section, name: str) -> Iterator[str]:
    """Yield hints at the settings that are not shown: those of other variants and of other items."""
    for by, root in _pickers(section).items():
        others = [variant for variant in root.variants if variant != getattr(section, by)]
        yield _paragraph(f"Other settings: --{name}.{by} {' | '.join(others)} --help {name}")
    if section.named_items:
        items = getattr(section, section.named_items)
        present = [item.name for item in items]
        absent = {name: field_names(variant) for name, variant in item_root(type(section)).variants.items()}
        yield "\n".join(
            [
                f"Other {section.named_items}, which the whole list may name, and their settings:",
                *(f"  {other:<16}{', '.join(keys[1:])}" for other, keys in absent.items() if other not in present),
            ]
        )


def _pickers(section: Section) -> dict[str, type[Choice]]:
    """Return the choices that a section is a variant of, by the setting that picks."""
    roots = [base for base in type(section).__mro__ if issubclass(base, Choice) and is_root(base)]
    return {root.picked_by: root for root in reversed(roots)}


def _names(section: Section, field: str) -> str:
    root = _pickers(section).get(field)
    return " | ".join(root.variants) if root else ""


def _kind(annotation: ast.expr) -> str:
    """Describe the values of a type as one types them."""
    if isinstance(annotation, ast.BinOp):  # a setting that may be None is left out, never typed
        sides = [side for side in (annotation.left, annotation.right) if ast.unparse(side) != "None"]
        return " | ".join(map(_kind, sides))
    if isinstance(annotation, ast.Subscript):
        kind = ast.unparse(annotation.value)
        items = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if kind in ("Annotated", "Optional"):
            return _kind(items[0])
        if kind == "Literal":
            return " | ".join(str(ast.literal_eval(item)) for item in items)
        if kind in ("tuple", "list"):
            of = _kind(items[0])
            return f"list of {of}s" if of in ("integer", "number", "table") else f"list of {of}"
        return "table"
    kinds = {"str": "text", "UserPath": "path", "int": "integer", "float": "number", "bool": "true | false"}
    return kinds.get(ast.unparse(annotation), "table")


def _value(config: Section, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _line(words: str, text: str) -> str:
    """Put ``text`` beside ``words``, or below them if they are long."""
    left = f"  {words}"
    if len(left) + 2 <= _COLUMN and _COLUMN + len(text) <= WIDTH:
        return f"{left:<{_COLUMN}}{text}"
    below = textwrap.wrap(text, WIDTH - 6, break_on_hyphens=False, break_long_words=False)
    if len(left) + 2 + len(text) <= WIDTH:
        return f"{left}  {text}"
    return "\n".join([left, *(f"      {line}" for line in below)])


def _paragraph(text: str, indent: int = 0) -> str:
    plain = " ".join(re.sub(r"``(.+?)``", r"\1", text).split())
    margin = " " * indent
    return textwrap.fill(
        plain,
        WIDTH,
        initial_indent=margin,
        subsequent_indent=margin,
        break_on_hyphens=False,
        break_long_words=False,
    )
