"""A choice: one key picks the dataclass that holds the others, in a section and in a list of named items."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import TypeAdapter, ValidationError

from cifar_dist.config import Config, plugins
from cifar_dist.config.choice import Choice, keys_of, leaves
from cifar_dist.config.layers import laid_over
from cifar_dist.config.section import Section, require


@dataclass(frozen=True)
class Fruit(Choice):
    key: ClassVar[str] = "fruit"
    variants: ClassVar[dict[str, type[Fruit]]] = {}

    name: str = "apple"
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(self.weight > 0, f"weight {self.weight} must be positive")

    def grow(self, days: int, *, by: float) -> float:
        return self.weight + days * by


@dataclass(frozen=True)
class Apple(Fruit):
    name: str = "apple"
    red: bool = False


@dataclass(frozen=True)
class Grape(Fruit):
    needs: ClassVar[dict[str, str]] = {"seed_size": "seeds"}
    name: str = "grape"
    seeds: int = 0
    seed_size: float = 1.0


@dataclass(frozen=True)
class Citrus(Fruit):
    picked_by: ClassVar[str] = "kind"
    variants: ClassVar[dict[str, type[Fruit]]] = {}
    kind: str = "lemon"


@dataclass(frozen=True)
class Lemon(Citrus):
    name: str = "citrus"
    kind: str = "lemon"
    sour: int = 3


@dataclass(frozen=True)
class Orange(Citrus):
    name: str = "citrus"
    kind: str = "orange"
    red: bool = True


Fruit.variants.update(apple=Apple, grape=Grape, citrus=Citrus)
Citrus.variants.update(lemon=Lemon, orange=Orange)


@dataclass(frozen=True)
class Basket(Section):
    fruit: Fruit = field(default_factory=Apple)
    more: tuple[Fruit, ...] = ()


def read(tree: dict[str, object], *, import_plugins: bool = True) -> Basket:
    return TypeAdapter(Basket).validate_python(tree, context={"import_plugins": import_plugins})


@pytest.mark.parametrize(
    ("settings", "variant"),
    [
        ({}, Apple()),
        ({"red": "true", "weight": "2"}, Apple(weight=2.0, red=True)),
        ({"name": "grape", "seeds": 2, "seed_size": 0.5}, Grape(seeds=2, seed_size=0.5)),
        ({"name": "citrus", "sour": 1}, Lemon(sour=1)),
        ({"name": "citrus", "kind": "orange"}, Orange()),
    ],
)
def test_a_name_picks_the_dataclass(settings: dict[str, object], variant: Fruit) -> None:
    assert read({"fruit": settings}) == Basket(fruit=variant)
    assert read({"more": [settings, {"name": "apple"}]}) == Basket(more=(variant, Apple()))
    written = asdict(Basket(fruit=variant, more=(variant,)))
    assert read(written) == Basket(fruit=variant, more=(variant,)), "what was written can be read back"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "aple"}, "name 'aple' is not known; did you mean 'apple'?"),
        ({"name": "a/b.py"}, "name 'a/b.py' does not say what to use of that file; write a/b.py:Attribute"),
        ({"name": 3}, "name 3 must be a string"),
        ({"seeds": 3}, 'seeds has no effect with fruit.name = "apple"; remove it, or use --fruit.name grape'),
        ({"name": "grape", "red": 1}, 'with fruit.name = "grape"; remove it, or use --fruit.name apple or citrus'),
        ({"name": "citrus", "red": 1}, 'with fruit.kind = "lemon"; remove it, or use --fruit.kind orange'),
        ({"name": "grape", "seed_size": 2}, "seed_size has no effect without seeds; remove it, or set --fruit.seeds"),
        ({"weight": -1}, "weight -1.0 must be positive"),
        ({"sed": 1}, "sed is not a setting; did you mean 'red'?"),
    ],
)
def test_what_has_no_effect_is_refused(settings: dict[str, object], says: str) -> None:
    for tree in ({"fruit": settings}, {"more": [settings]}):
        with pytest.raises(ValidationError) as caught:
            read(tree)  # type: ignore[arg-type]
        (error,) = caught.value.errors()
        assert says in str(error["ctx"]["error"])


def test_a_value_is_refused_under_its_key() -> None:
    with pytest.raises(ValidationError) as caught:
        read({"more": [{}, {"name": "grape", "seeds": "many"}]})
    assert caught.value.errors()[0]["loc"] == ("more", 1, "seeds")


def test_all_variants_and_keys_are_listed() -> None:
    assert [leaf for _, leaf in leaves(Fruit)] == [Apple, Grape, Lemon, Orange]
    assert [picks for picks, _ in leaves(Fruit)][-1] == {"name": "citrus", "kind": "orange"}
    assert keys_of(Fruit) == ["name", "weight", "red", "seeds", "seed_size", "kind", "sour"]


def test_another_variant_does_not_inherit_settings_that_it_does_not_have() -> None:
    below = {"fruit": {"name": "grape", "seeds": 3, "weight": 2.0}, "more": [{"name": "grape"}]}
    above = {"fruit": {"name": "apple"}}
    assert read(laid_over(below, above, Basket)).fruit == Apple(weight=2.0)
    assert laid_over(below, {"fruit": {"weight": 3.0}}, Basket)["fruit"] == {"name": "grape", "seeds": 3, "weight": 3.0}
    with pytest.raises(ValidationError, match="seeds has no effect"):
        read(laid_over(below, {"fruit": {"name": "apple", "seeds": 3}}, Basket))


def test_another_variant_does_not_inherit_a_setting_that_has_another_default_there() -> None:
    """With the decay of an EMA, at every step, lookahead learnt nothing."""
    below = {"average": {"name": "ema", "decay": 0.999, "every": 1, "start": 2.0}}
    kept = {"name": "lookahead", "start": 2.0}
    assert laid_over(below, {"average": {"name": "lookahead"}}, Config) == {"average": kept}
    given = {"average": {"name": "lookahead", "every": 6}}
    assert laid_over(below, given, Config) == {"average": {**kept, "every": 6}}
    assert laid_over(below, {"average": {"name": "swa"}}, Config)["average"] == {"name": "swa", "every": 1, "start": 2}
    assert laid_over(below, {"average": {"decay": 0.9}}, Config)["average"] == {**below["average"], "decay": 0.9}


# ---- from outside ------------------------------------------------------------------------------------------------

PLUG_IN = """
from dataclasses import dataclass
from test_choice import Fruit

@dataclass(frozen=True)
class Melon(Fruit):
    water: float = 0.9

class Stone(Fruit):
    pass
"""


@pytest.fixture
def melon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "test_choice", sys.modules[__name__])
    path = tmp_path / "my:fruit.py"
    path.write_text(PLUG_IN)
    return str(path)


def test_a_dataclass_from_a_file(melon: str) -> None:
    (item,) = read({"more": [{"name": f"{melon}:Melon", "water": "0.5", "weight": 2}]}).more
    assert asdict(item) == {"name": f"{melon}:Melon", "weight": 2.0, "water": 0.5}
    assert type(item) is type(read({"fruit": {"name": f"{melon}:Melon"}}).fruit), "the file is imported once"


def test_a_method_of_a_plug_in_may_name_its_arguments_and_take_more(melon: str, tmp_path: Path) -> None:
    for method in (
        "def grow(self, n, *, by, more=0): ...",
        "def grow(*all, **named): ...",
        "grow = staticmethod(lambda days, by: 0)",
        "def other(self): ...",
    ):
        file = tmp_path / f"{abs(hash(method))}.py"
        below = "\n@dataclass(frozen=True)\nclass Below(Melon):\n    def other(self, of_its_own): ..."
        file.write_text(PLUG_IN.replace("water: float = 0.9", method) + below)
        read({"fruit": {"name": f"{file}:Below"}})


def test_settings_are_read_without_the_code(tmp_path: Path) -> None:
    settings = {"name": f"{tmp_path / 'gone.py'}:Melon", "weight": 2.0, "water": [1, 2]}
    item = read({"fruit": settings}, import_plugins=False).fruit
    assert isinstance(item, Fruit)
    assert asdict(item) == settings


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere.py:Melon", "file nowhere.py does not exist"),
        ("{melon}:Mellon", "has no 'Mellon'; did you mean 'Melon'?"),
        ("{melon}:Stone", "Stone is not a settings dataclass; derive it from test_choice.Fruit and decorate"),
        ("{melon}:dataclass", "dataclass is not a settings dataclass"),
        ("no_such_package.melon:Melon", "module no_such_package.melon is not installed"),
        ("json.melon:Melon", "module json.melon is not installed"),
        ("../melon:Melon", "must be path/to/file.py:Attribute or package.module:Attribute"),
        ("{broken}:Melon", "broken.py raised ZeroDivisionError: division by zero"),
        ("{broken}:Melon", "division by zero (line 2)"),
        ("{ends}:Melon", "ends.py raised SystemExit: 3 (line 1)"),
        ("{wrong}:Melon", "wrong.py raised SyntaxError: "),
        ("{wrong}:Melon", " (line 3)"),
        ("{frozen}:Melon", "cannot inherit non-frozen dataclass from a frozen one (line 3)"),
        ("{sibling}:Melon", "No module named 'sprout' (line 1); only the file itself is imported: put both into one"),
        ("{sibling}:Melon", "or add its folder: export PYTHONPATH={folder}"),
        ("{__init__}:Melon", "(line 1); only the file itself is imported: put both into one, or install the package"),
        ("{few}:Melon", "Melon': Melon.grow(self) is called with other arguments; write grow(self, days, *, by)"),
        ("{peel}:Melon", "Melon': Melon.peel has the type Peel | None, which a recipe cannot contain; make it"),
        ("{hidden}:Sweet", "Sweet.peel has the type list[Hidden], which cannot be read: name 'Hidden' is not"),
        ("{misspelt}:Melon", "type sys.Peel, which cannot be read: module 'sys' has no attribute 'Peel'; make it a"),
    ],
)
def test_a_mistake_in_a_plug_in_is_one_line(melon: str, tmp_path: Path, spec: str, says: str) -> None:
    frozen = "from dataclasses import dataclass\nfrom test_choice import Fruit\n@dataclass\nclass Melon(Fruit): ..."
    files = {"broken": "\n1 / 0", "ends": "raise SystemExit(3)", "wrong": "\n\ndef", "frozen": frozen}
    few = PLUG_IN.replace("water: float = 0.9", "def grow(self): ...")
    files |= {"sprout": "", "__init__": "from .sprout import Melon", "sibling": "import sprout", "few": few}
    water = "water: float = 0.9"
    peel = PLUG_IN.replace("@data", "class Peel: ...\n@data").replace(water, "peel: Peel | None = None")
    hidden = PLUG_IN.replace(water, "peel: 'list[Hidden]' = ()") + "@dataclass(frozen=True)\nclass Sweet(Melon): ..."
    misspelt = f"from __future__ import annotations\nimport sys{PLUG_IN.replace(water, 'peel: sys.Peel = 3')}"
    files |= {"peel": peel, "hidden": hidden, "misspelt": misspelt}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    name = spec.format(melon=melon, **{name: tmp_path / f"{name}.py" for name in files})
    with pytest.raises(ValidationError) as caught:
        read({"fruit": {"name": name}})
    message = str(caught.value.errors()[0]["ctx"]["error"])
    assert says.replace("{folder}", str(tmp_path)) in message
    assert "\n" not in message


def test_the_file_of_a_plug_in_is_known_without_an_import() -> None:
    assert plugins.file_of("some where/net.py:Net") == Path("some where/net.py")
    assert plugins.file_of("package.net:Net") is None
