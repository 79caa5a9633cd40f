"""Words of a command line: what a message suggests is read back as the value that it shows."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_dist.config.keys import types_of, values_of
from cifar_dist.config.overrides import parse_overrides, split_settings
from cifar_dist.config.toml_text import option
from cifar_dist.errors import UserError

SCALARS = st.booleans() | st.integers(-9, 9) | st.text(st.characters(exclude_categories=["C"]))


@given(SCALARS | st.lists(SCALARS, max_size=3))
def test_an_option_of_a_model_is_read_as_it_was_shown(value: object) -> None:
    assert parse_overrides(shlex.split(option("model.options.width", value))) == {"model.options.width": value}


@pytest.mark.parametrize(
    ("typed", "value"),
    [("8,16", [8, 16]), ("8, 16,", [8, 16]), ("0.5,true", [0.5, True]), ("gelu", "gelu"), ("gelu,relu", "gelu,relu")],
)
def test_an_option_of_a_model_may_be_a_list_without_brackets(typed: str, value: object) -> None:
    assert parse_overrides(["--model.options.widths", typed]) == {"model.options.widths": value}


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1).filter(lambda text: not text.startswith("--")))
def test_a_text_is_read_as_it_was_shown(text: str) -> None:
    assert parse_overrides(shlex.split(option("run.name", text))) == {"run.name": text}


def test_a_list_of_tables_is_read_as_it_was_shown() -> None:
    items = [{"name": "it's.py:A", "p": 0.5}, {"name": "crop"}]
    assert parse_overrides(shlex.split(option("augment.transforms", items))) == {"augment.transforms": items}


LIST, OPTIONS = '[{name = "crop"}]', "{widths = [8]}"


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--optim.lr=1", "--optim.lr=2"], {"optim.lr": "2"}),
        (["--augment.crop.pad=2", f"--augment.transforms={LIST}"], {"augment.transforms": [{"name": "crop"}]}),
        (
            [f"--augment.transforms={LIST}", "--augment.crop.pad=2"],
            {"augment.transforms": [{"name": "crop"}], "augment.crop.pad": "2"},
        ),
        (
            ["--augment.transforms=[]", "--augment.crop.pad=2", f"--augment.transforms={LIST}", "--augment.mean=0"],
            {"augment.transforms": [{"name": "crop"}], "augment.mean": ["0"]},
        ),
        (
            ["--augment.mean=0", "--augment.crop.pad=2", "--augment.transforms=[]"],
            {"augment.mean": ["0"], "augment.transforms": []},
        ),
        (["--model.options.act=gelu", f"--model.options={OPTIONS}"], {"model.options": {"widths": [8]}}),
        (
            [f"--model.options={OPTIONS}", "--model.options.act=gelu", f"--model.options={OPTIONS}"],
            {"model.options": {"widths": [8]}},
        ),
    ],
)
def test_the_last_of_two_that_set_the_same_wins(words: list[str], left: dict[str, object]) -> None:
    found = parse_overrides(words)
    assert list(found.items()) == list(left.items())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--"], "unexpected '--'; settings are written --section.field VALUE"),
        (["--", "demo"], "unexpected '--'"),
        (["--train..epochs", "3"], "--train..epochs has a dot too many"),
        (["--model", "{}"], "--model is a section and not replaced as a whole"),
        (["--optim.betas", "[0.9"], "is not a TOML list"),
        (["--run.dir", "a\udcff"], r"--run.dir 'a\udcff' is not UTF-8, as config.toml must be; rename the"),
    ],
)
def test_a_mistake_is_named(words: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_overrides(words)
    assert says in str(caught.value)


def test_the_values_of_a_setting_that_has_few() -> None:
    assert values_of("train.compile") == ["no", "default", "reduce-overhead", "max-autotune"]
    assert values_of("run.fresh") == ["true", "false"]
    assert values_of("augment.flip.kind") == ["random", "alternating"]
    assert values_of("optim.lr") == values_of("model.options.x") == values_of("nothing.there") == []
    assert types_of("run.from") == types_of("run.name") == [str]


@given(st.lists(st.sampled_from(["name", "--optim.lr", "--optim.lr=1", "0.1", "[8, 16]", "--out", "--run.fresh"])))
def test_settings_are_separated_from_the_arguments_of_a_verb(words: list[str]) -> None:
    settings, others = split_settings(words)
    assert sorted([*settings, *others]) == sorted(words)
    assert not [word for word in others if word.startswith("--") and "." in word.partition("=")[0]]
    assert "--out" not in settings
