"""A choice: a section, or an item of a list, in which one key picks the dataclass that holds the others.

The root of a choice is a frozen dataclass with the fields that all variants share; each variant derives from it and
adds its own, so a setting that the chosen variant does not have is refused instead of ignored::

    @dataclass(frozen=True)
    class ScheduleConfig(Choice):
        key: ClassVar[str] = "schedule"
        variants: ClassVar[dict[str, type[ScheduleConfig]]] = {}

        name: str = "onecycle"

    @dataclass(frozen=True)
    class StepConfig(ScheduleConfig):
        name: str = "step"
        gamma: float = 0.1

    ScheduleConfig.variants.update(step=StepConfig, ...)

A field of type ``ScheduleConfig``, or ``tuple[ScheduleConfig, ...]`` for a list of named items, is then read from
tables such as ``{name = "step", gamma = 0.2}``. A ``name`` that locates code (see :mod:`.plugins`) picks a dataclass
from outside the package, which also derives from the root. A variant may itself be a choice.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import keyword
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Self, TypeGuard

from cifar_dist.config import plugins
from cifar_dist.config.plugin_errors import describe_unreadable_field, other_arguments
from cifar_dist.config.section import Section, key_of
from cifar_dist.config.tree import require_toml
from cifar_dist.config.typed_text import TypedText, split_commas
from cifar_dist.errors import nearest

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationInfo
    from pydantic_core import CoreSchema


_NOT_A_LIST: Final = ("list_type", "tuple_type", "sequence_str")
"""The types of pydantic's errors for a text in place of a list."""


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
    """Base class of the roots of choices, and so of their variants.

    Attributes:
        key: the section's name, for messages; empty for items of a list.
        picked_by: the field that picks the variant; its default picks the default variant.
        variants: the built-in variants by name. A class that defines it is a root; one that inherits it is a variant.
        needs: settings that have an effect only with another one: {"start": "warmup"}. Setting the first without the
            second, whose default disables both, is refused.
        defined_by_variants: methods that the root declares and each variant must define.
        defines_one: whether one of these methods is enough.
        derived_from: classes that a plug-in must derive from, in words, if ``plug_in_base`` is not what it needs.
        plug_in_base: the class that a plug-in must derive from, if not the root.
    """

    key: ClassVar[str] = ""
    picked_by: ClassVar[str] = "name"
    variants: ClassVar[Mapping[str, type[Choice]]]
    needs: ClassVar[Mapping[str, str]] = {}
    defined_by_variants: ClassVar[tuple[str, ...]] = ()
    defines_one: ClassVar[bool] = False
    derived_from: ClassVar[str] = ""
    plug_in_base: ClassVar[type[Choice] | None] = None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        if is_root(cls):
            return core_schema.with_info_plain_validator_function(cls._read)
        return super().__get_pydantic_core_schema__(source, handler)

    @classmethod
    def _read(cls, settings: object, info: ValidationInfo) -> Self:
        """Build and validate the variant that ``settings`` pick."""
        from pydantic_core import PydanticCustomError

        if isinstance(settings, cls):
            return settings
        if not isinstance(settings, Mapping):
            raise PydanticCustomError("table", f'must be a table such as {{ {cls.picked_by} = "..." }}')
        context = info.context or {}
        variant = pick(cls, settings, import_plugins=bool(context.get("import_plugins", True)))
        check_known(cls, variant, settings)
        read = _validate_typed(variant, settings, info.context)
        assert isinstance(read, cls), "a variant derives from its root"
        check_effective(read, settings)
        if plugins.is_spec(getattr(read, "name", "")):
            require_toml(read)
        return read


def validate(kind: type, settings: object, context: object) -> object:
    """Build a dataclass from settings with pydantic."""
    return _validator_of(kind).validate_python(settings, context=context)


def _validate_typed(variant: type[Choice], settings: Mapping[str, object], context: object) -> object:
    """Build a variant as :func:`validate` does; a text of a command line is a list where the field takes no text."""
    from pydantic import ValidationError

    plain = {key: str(value) if isinstance(value, TypedText) else value for key, value in settings.items()}
    try:
        return validate(variant, plain, context)
    except ValidationError as error:
        wrong = {one["loc"][:1] for one in error.errors() if one["type"] in _NOT_A_LIST}
    texts = ((key, text) for key, text in settings.items() if isinstance(text, TypedText) and (key,) in wrong)
    return validate(variant, {**plain, **{key: split_commas(text) for key, text in texts}}, context)


@functools.cache  # deriving one takes 10 ms
def _validator_of(kind: type) -> TypeAdapter[object]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def is_root(cls: type) -> TypeGuard[type[Choice]]:
    """Whether ``cls`` is the root of a choice, not a variant."""
    return "variants" in vars(cls)


def leaves(root: type[Choice]) -> Iterator[tuple[dict[str, str], type[Choice]]]:
    """Yield each built-in variant that is not itself a choice, with the settings that pick it.

    For example ``({"name": "muon", "rest": "sgd"}, MuonSGDConfig)``.
    """
    for name, variant in root.variants.items():
        below = leaves(variant) if is_root(variant) else [({}, variant)]
        yield from (({root.picked_by: name, **more}, leaf) for more, leaf in below)


def field_names(section: type) -> list[str]:
    """Return the keys of a section or a variant, in their order of definition."""
    return [key_of(field.name) for field in dataclasses.fields(section)]


def default_values(section: type) -> dict[str, object]:
    """Return the default of each key of a section or a variant; ``dataclasses.MISSING`` where a factory makes it."""
    return {key_of(field.name): field.default for field in dataclasses.fields(section)}


def keys_of(section: type) -> list[str]:
    """Return the keys of a section; for a choice, those of all built-in variants, each once."""
    variants = [variant for _, variant in leaves(section)] if is_root(section) else []
    return [*dict.fromkeys(key for variant in (section, *variants) for key in field_names(variant))]


def pick(root: type[Choice], settings: Mapping[str, object], *, import_plugins: bool = True) -> type[Choice]:
    """Return the variant that ``settings`` ask for.

    Args:
        import_plugins: if false, no code of a plug-in runs: its variant is a dataclass of the keys in ``settings``.

    Raises:
        ValueError: no such variant; the message begins with the key that picks.
    """
    variant = root
    while is_root(variant):
        by = variant.picked_by
        name = settings.get(by, getattr(variant, by))
        if isinstance(name, bool) or name in ("true", "false"):  # resembles a word by its letters only
            raise ValueError(f"{by} {str(name).lower()} is not known; known: {', '.join(sorted(variant.variants))}")
        if not isinstance(name, str):
            raise ValueError(f"{by} {name!r} must be a string")
        if by == "name" and plugins.is_spec(name):
            return _plugin(root, name) if import_plugins else _unimported(root, settings)
        if name not in variant.variants:
            raise ValueError(f"{by} {name!r} is not known; {nearest(name, variant.variants)}")
        variant = variant.variants[name]
    return variant


def check_known(root: type[Choice], variant: type[Choice], settings: Mapping[str, object]) -> None:
    """Refuse a key that ``variant`` does not have.

    Raises:
        ValueError: another variant has the key; the message begins with the key.
        UnknownSettingError: no variant has it.
    """
    known = field_names(variant)
    for key in settings:
        if key not in known:
            raise _refusal(root, key, settings) or UnknownSettingError(key, known)


def check_effective(chosen: Choice, settings: Mapping[str, object]) -> None:
    """Refuse a key that has no effect without another one.

    Args:
        chosen: what was read from ``settings``, so that a value from a command line equals its default.
        settings: the keys that were set.

    Raises:
        ValueError: the message begins with the key.
    """
    for key, other in chosen.needs.items():
        if key in settings and other not in settings and getattr(chosen, key) != getattr(type(chosen), key):
            way = f"--{chosen.key}.{other}" if chosen.key else other
            raise ValueError(f"{key} has no effect without {other}; remove it, or set {way}")


def _refusal(root: type[Choice], key: str, settings: Mapping[str, object]) -> ValueError | None:
    """Explain why ``key`` has no effect with the variant that ``settings`` pick; None if no variant has it."""
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
    """Import the settings dataclass that ``name`` locates."""
    found, attribute = plugins.load(name), name.rpartition(":")[2]
    base = root.plug_in_base or root
    if not (isinstance(found, type) and issubclass(found, base) and "__dataclass_fields__" in vars(found)):
        parents = base.derived_from or f"{base.__module__}.{base.__qualname__}"
        raise ValueError(
            f"name {name!r}: {attribute} is not a settings dataclass; derive it from {parents} and decorate it with "
            "@dataclass(frozen=True)"
        )
    missing = [method for method in base.defined_by_variants if getattr(found, method) is getattr(base, method)]
    if missing and (len(missing) == len(base.defined_by_variants) or not base.defines_one):
        either = " or " if base.defines_one else ", "
        raise ValueError(f"name {name!r}: {attribute} does not define {either.join(f'{one}()' for one in missing)}")
    if wrong := other_arguments(found) or _unreadable_field(found):
        raise ValueError(f"name {name!r}: {wrong}")
    return found


def _unreadable_field(kind: type) -> str:
    """Return which field of a plug-in's dataclass has a type that pydantic cannot read, in one line; empty for none."""
    try:
        _validator_of(kind).rebuild()  # or a name that is not defined is reported only when it validates
    except Exception as error:  # a type may be any expression
        return describe_unreadable_field(kind, error)
    return ""


def _unimported(root: type[Choice], settings: Mapping[str, object]) -> type[Choice]:
    """Return a dataclass of the keys of ``settings``, to read a plug-in's settings without running its code.

    Its methods raise RuntimeError.
    """
    base = root.plug_in_base or root
    own: list[tuple[str, type]] = []
    for key in settings:
        if not key.isidentifier():
            raise UnknownSettingError(key, field_names(root))
        if key not in field_names(base):
            own.append((f"{key}_" if keyword.iskeyword(key) else key, object))  # as `key_of` reads it
    made = dataclasses.make_dataclass(
        f"Unread{root.__name__}", own, bases=(base,), namespace=_refusals(base), frozen=True, kw_only=True
    )
    assert issubclass(made, Choice)
    return made


def _refusals(base: type[Choice]) -> dict[str, object]:
    """Return what replaces each method of ``base`` in a dataclass whose code is missing, by name."""

    def refuse(self: Choice, *_: object, **__: object) -> None:
        name = getattr(self, self.picked_by)
        raise RuntimeError(f"{name} was read without its code, so it cannot compute; read it with import_plugins")

    own = [name for cls in base.__mro__ if issubclass(cls, Choice) and cls is not Choice for name in vars(cls)]
    return {name: refuse for name in own if inspect.isfunction(getattr(base, name)) and not name.startswith("_")}
