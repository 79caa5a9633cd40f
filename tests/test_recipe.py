"""Recipes and overrides: one path, one set of checks, one line per mistake."""

from __future__ import annotations

import ast
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_dist import config, recipe
from cifar_dist.config import Config, OptimConfig, RunConfig, TrainConfig
from cifar_dist.errors import UserError


@pytest.fixture
def plain(tmp_path: Path) -> str:
    path = tmp_path / "plain.toml"
    path.write_text('[train]\nepochs = 3\nbatch_size = 32\n[model]\nname = "tiny-cnn"\n')
    return str(path)


@pytest.mark.parametrize("name", recipe.shipped())
def test_every_shipped_recipe_is_valid_and_says_what_it_is(name: str) -> None:
    loaded = recipe.load(name)
    assert loaded.run.name == name.replace("/", "-")
    head = recipe.recipe_path(name).read_text().splitlines()
    assert head[0].startswith("# "), "a recipe's head says in a line or two what it is"


def test_file_then_overrides(plain: str) -> None:
    loaded = recipe.load(
        plain,
        [
            "--optim.lr",
            "1e-3",
            "--optim.betas=[0.8, 0.99]",
            "--run.fresh",
            "--train.channels-last",
            "--run.name",
            "1e3",
        ],
    )
    assert loaded.train == TrainConfig(epochs=3, batch_size=32, channels_last=True)
    assert loaded.optim == OptimConfig(lr=1e-3, betas=(0.8, 0.99))
    assert loaded.run == RunConfig(name="1e3", fresh=True)


def test_model_options_take_any_value_of_toml(plain: str) -> None:
    words = ["--model.options.widths", "[8, 16]", "--model.options.act", "gelu", "--model.options.depth", "3"]
    assert recipe.load(plain, words).model.options == {"widths": [8, 16], "act": "gelu", "depth": 3}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--optim.lrr", "1"], "did you mean '--optim.lr'?"),
        (["--train.lr", "1"], "did you mean '--optim.lr'?"),
        (["--epochs", "1"], "did you mean '--train.epochs'?"),
        (["--optm.lr", "1"], "did you mean '--optim'?"),
        (["--optim", "sgd"], "--optim is a section; set one of its keys, as optim.name"),
        (["--optim.lr", "fast"], "optim.lr: input should be a valid number"),
        (["--optim.lr", "nan"], "optim.lr: input should be a finite number"),
        (["--optim.lr", "-1"], "lr -1.0 must be positive"),
        (["--optim.name", "sgdd"], "input should be 'sgd', 'adam', 'adamw' or 'muon', not 'sgdd'"),
        (["--train.epochs", "2.5"], "train.epochs"),
        (["--train.batch_size", "7", "--train.accumulate", "2"], "batch_size 7 is not divisible by accumulate 2"),
        (["--schedule.warmup", "9"], "schedule.warmup 9.0 is longer than train.epochs 3"),
        (["--schedule.milestones", "[1, 2]"], "milestones belong to the schedule 'step'"),
        (["--run.name", "../x"], "name '../x' must be"),
        (["--run.name", "a b"], "name 'a b' must be"),
        (["--eval.tta", "flip"], "tta 'flip' must be 0, mirror, translate"),
        (["--augment.mean", "[0.5"], "is not a TOML list"),
        (["epochs=3"], "unexpected 'epochs=3'"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_type(plain: str, words: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.load(plain, words)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert "plain.toml" not in message, "the mistake is on the command line, not in the file"


def test_a_mistake_in_the_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nepoch = 3\n")
    with pytest.raises(UserError, match=r"mine\.toml: no setting is called train\.epoch; did you mean 'train\.epochs'"):
        recipe.load(str(path))
    path.write_text("[train\n")
    with pytest.raises(UserError, match=r"mine\.toml: not readable as TOML"):
        recipe.load(str(path))


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'demo'"):
        recipe.load("demmo")
    with pytest.raises(UserError, match=r"there is no recipe file nowhere\.toml"):
        recipe.load("nowhere.toml")


@given(
    st.builds(
        Config,
        run=st.builds(RunConfig, seed=st.integers(0, 2**31 - 1), name=st.from_regex(r"[a-z0-9_]{1,8}", fullmatch=True)),
        optim=st.builds(
            OptimConfig,
            lr=st.floats(1e-12, 1e6),
            betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
            weight_decay=st.floats(0, 1),
        ),
        train=st.builds(TrainConfig, epochs=st.integers(1, 10**6), label_smoothing=st.floats(0, 0.99)),
    )
)
def test_what_a_run_folder_says_is_what_ran(tree: Config) -> None:
    """Writing a config and reading it gives the same config, to the last bit of every float."""
    assert recipe.build(tomllib.loads(recipe.to_toml(tree)), where="here") == tree


@given(st.lists(st.text(max_size=20), max_size=4))
def test_no_command_line_causes_anything_but_a_user_error(words: list[str]) -> None:
    message = ""
    try:
        recipe.load("demo", words)
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1, message


def test_every_setting_is_documented() -> None:
    """`--help` prints the text under each field; a field without one would be a gap there."""
    tree = ast.parse(Path(config.__file__).read_text())
    for section in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != "Config"):
        for field, text in pairwise(section.body):
            if isinstance(field, ast.AnnAssign) and not ast.unparse(field.annotation).startswith("ClassVar"):
                assert isinstance(text, ast.Expr), f"{section.name}.{ast.unparse(field.target)} has no text under it"
                assert isinstance(text.value, ast.Constant)
