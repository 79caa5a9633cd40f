"""A choice: a section, or an item of a list, in which one key picks the dataclass that holds the others.

The root of a choice is a frozen dataclass with the fields that all variants share; each variant derives from it and
adds its own, so a setting that the chosen variant does not have is refused instead of ignored::

    @dataclass(frozen=True)
    class ScheduleConfig(Choice):
        key: ClassVar[str] = "schedule"
        variants: ClassVar[dict[str, type[ScheduleConfig]]] = {}

        name: str = "constant"

    @dataclass(frozen=True)
    class StepConfig(ScheduleConfig):
        name: Literal["step"] = "step"
        gamma: float = 0.1

    ScheduleConfig.variants.update(step=StepConfig, ...)

A field of type ``ScheduleConfig``, or ``tuple[ScheduleConfig, ...]`` for a list of named items, is then read from
tables such as ``{name = "step", gamma = 0.2}``. A ``name`` that says where code lies (see :mod:`.plugins`) picks a
dataclass from outside the package, which derives from the root as well. A variant may itself be a choice.
"""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Self, TypeGuard

from cifar_dist.config import plugins
from cifar_dist.config.section import Section
from cifar_dist.errors import nearest

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, ValidationInfo
    from pydantic_core import CoreSchema


class UnknownSettingError(ValueError):
    """A key that no variant has.

    Attributes:
        field: the key.
        known: fields of the chosen variant.
    """

    def __init__(self, field: str, known: list[str]) -> None:
        super().__init__(f"{field} is not a setting; {nearest(field, known)}")
        self.field, self.known = field, known


class Choice(Section):
    """Base of the root of a choice, and so of its variants.

    Attributes:
        key: the section it is, for messages; empty where it is an item of a list.
        picked_by: the field that picks the variant; its default picks the default variant.
        variants: the built-in ones. A class that defines it is a root, one that inherits it is a variant.
        needs: settings that act only beside another one: {"start": "warmup"}. Giving the first and not the second,
            whose default switches both off, is refused.
    """

    key: ClassVar[str] = ""
    picked_by: ClassVar[str] = "name"
    variants: ClassVar[Mapping[str, type[Choice]]]
    needs: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        if is_root(cls):
            return core_schema.with_info_plain_validator_function(cls._read)
        return handler(source)

    @classmethod
    def _read(cls, settings: object, info: ValidationInfo) -> Self:
        """The variant that ``settings`` pick, filled from them and checked."""
        from pydantic import TypeAdapter
        from pydantic_core import PydanticCustomError

        if isinstance(settings, cls):
            return settings
        if not isinstance(settings, Mapping):
            raise PydanticCustomError("table", f'must be a table such as {{ {cls.picked_by} = "..." }}')
        context = info.context or {}
        variant = pick(cls, settings, import_plugins=bool(context.get("import_plugins", True)))
        check_effective(cls, variant, settings)
        read = TypeAdapter(variant).validate_python(settings, context=info.context)
        assert isinstance(read, cls), "a variant derives from its root"
        return read


def is_root(cls: type) -> TypeGuard[type[Choice]]:
    """Whether ``cls`` is the root of a choice, and no variant."""
    return "variants" in vars(cls)


def leaves(root: type[Choice]) -> Iterator[tuple[dict[str, str], type[Choice]]]:
    """Every built-in variant that is not a choice itself, with what picks it: ``{"name": "muon", "rest": "sgd"}``."""
    for name, variant in root.variants.items():
        below = leaves(variant) if is_root(variant) else [({}, variant)]
        yield from (({root.picked_by: name, **more}, leaf) for more, leaf in below)


def field_names(section: type) -> list[str]:
    """The keys of a section or a variant, in the order in which they are written."""
    return [field.name for field in dataclasses.fields(section)]


def keys_of(section: type) -> list[str]:
    """The keys of a section; of a choice, those of all built-in variants, each once."""
    variants = [variant for _, variant in leaves(section)] if is_root(section) else []
    return [*dict.fromkeys(key for variant in (section, *variants) for key in field_names(variant))]


def pick(root: type[Choice], settings: Mapping[str, object], *, import_plugins: bool = True) -> type[Choice]:
    """The variant that ``settings`` ask for.

    Args:
        import_plugins: without, a plug-in's variant is a dataclass of the keys that are there, and no code of it runs.

    Raises:
        ValueError: no such variant. The message begins with the key that picks.
    """
    variant = root
    while is_root(variant):
        by = variant.picked_by
        name = settings.get(by, getattr(variant, by))
        if not isinstance(name, str):
            raise ValueError(f"{by} {name!r} must be text")
        if variant is root and plugins.is_spec(name):
            return _plugin(root, name) if import_plugins else _unread(root, settings)
        if name not in variant.variants:
            raise ValueError(f"{by} {name!r} is not known; {nearest(name, variant.variants)}")
        variant = variant.variants[name]
    return variant


def check_effective(root: type[Choice], variant: type[Choice], settings: Mapping[str, object]) -> None:
    """Refuse a key that ``variant`` does not have, or that does nothing without another one.

    Raises:
        ValueError: with the choice that has it; the message begins with the key.
        UnknownSettingError: none has it.
    """
    known = field_names(variant)
    for key in settings:
        if key not in known:
            raise _refusal(root, key, settings) or UnknownSettingError(key, known)
        other = variant.needs.get(key, key)
        if other not in settings and settings[key] != getattr(variant, key):
            way = f"--{root.key}.{other}" if root.key else other
            raise ValueError(f"{key} has no effect without {other}; remove it, or set {way}")


def _refusal(root: type[Choice], key: str, settings: Mapping[str, object]) -> ValueError | None:
    """Why ``key`` does nothing beside what ``settings`` pick; None where no variant has it."""
    name = settings.get(root.picked_by, getattr(root, root.picked_by))
    chosen = root.variants.get(str(name))
    if chosen is not None and is_root(chosen):
        nested = _refusal(chosen, key, settings)
        if nested is not None:
            return nested
    others = dict.fromkeys(picks[root.picked_by] for picks, leaf in leaves(root) if key in field_names(leaf))
    if not others:
        return None
    by = f"{root.key}.{root.picked_by}" if root.key else root.picked_by
    way = f"--{by} {_either(others)}" if root.key else f"{by} = {_either(others)}"
    return ValueError(f'{key} has no effect with {by} = "{name}"; remove it, or use {way}')


def _either(names: Mapping[str, None]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _plugin(root: type[Choice], name: str) -> type[Choice]:
    """The settings dataclass that a plug-in brings."""
    found = plugins.load(name)
    if isinstance(found, type) and issubclass(found, root) and "__dataclass_fields__" in vars(found):
        return found
    raise ValueError(
        f"name {name!r}: {name.rpartition(':')[2]} is not a settings dataclass; derive it from "
        f"cifar_dist.config.{root.__name__} and decorate it with @dataclass(frozen=True)"
    )


def _unread(root: type[Choice], settings: Mapping[str, object]) -> type[Choice]:
    """A dataclass of the keys of ``settings``, for who must read a plug-in's settings and not run its code."""
    own = [key for key in settings if key not in field_names(root)]
    for key in own:
        if not key.isidentifier() or keyword.iskeyword(key):
            raise UnknownSettingError(key, field_names(root))
    made = dataclasses.make_dataclass(
        f"Unread{root.__name__}", [(key, object) for key in own], bases=(root,), frozen=True, kw_only=True
    )
    assert issubclass(made, Choice)
    return made
