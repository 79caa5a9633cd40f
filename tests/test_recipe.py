"""Recipes and overrides: one path, one set of checks, one line per mistake."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_dist import recipe
from cifar_dist.config import Config, RunConfig, TrainConfig, plugins
from cifar_dist.config.build import build_config
from cifar_dist.config.optim import AdamConfig, AdamWConfig, MuonSGDConfig
from cifar_dist.config.saved import read_config
from cifar_dist.config.schedule import CosineConfig, StepConfig
from cifar_dist.config.tree import to_toml
from cifar_dist.errors import UserError
from cifar_dist.verbs.arguments import user_path


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


def test_overrides_follow_the_file(plain: str) -> None:
    loaded = recipe.load(
        plain,
        [
            "--optim.lr",
            "1e-3",
            "--optim.name",
            "adam",
            "--optim.betas=[0.8, 0.99]",
            "--run.fresh",
            "--train.channels-last",
            "--run.name",
            "1e3",
        ],
    )
    assert loaded.train == TrainConfig(epochs=3, batch_size=32, channels_last=True)
    assert loaded.optim == AdamConfig(lr=1e-3, betas=(0.8, 0.99))
    assert loaded.run == RunConfig(name="1e3", fresh=True)


def test_commas_separate_the_items_of_a_list(plain: str) -> None:
    words = ["--optim.name", "adam", "--optim.betas", "0.8, 0.99", "--augment.mean=0.5,0.4,0.3"]
    loaded = recipe.load(plain, [*words, "--augment.std", "0.2,0.2,0.2"])
    assert loaded.optim == AdamConfig(betas=(0.8, 0.99))
    assert loaded.augment.mean == (0.5, 0.4, 0.3)
    assert recipe.load(plain, ["--tracking.mirrors", "a.py:A,b.py:B"]).tracking.mirrors == ("a.py:A", "b.py:B")
    assert recipe.load(plain, ["--model.options.act", "a,b"]).model.options == {"act": "a,b"}, "its type is unknown"


def test_the_type_that_a_plug_in_declares_says_whether_commas_separate_items(plain: str, tmp_path: Path) -> None:
    """Also where a built-in one has a setting of the same name and another type."""
    code = tmp_path / "mine.py"
    code.write_text(
        "from dataclasses import dataclass\n"
        "from typing import Literal\n"
        "from cifar_dist.config import OptimConfig\n"
        "from cifar_dist.data.transforms import Transform\n"
        "@dataclass(frozen=True)\n"
        "class Mine(OptimConfig):\n"
        "    gammas: tuple[float, ...] = ()\n"
        "    powers: list[int] | None = None\n"
        "    betas: float = 0.9\n"
        "    note: str = ''\n"
        "    kind: Literal['a', 'b'] = 'a'\n"
        "    def build(self, groups): ...\n"
        "@dataclass(frozen=True)\n"
        "class Tint(Transform):\n"
        "    color: tuple[int, int, int] = (0, 0, 0)\n"
        "    def __call__(self, images, samples): ...\n"
    )
    words = ["--optim.name", f"{code}:Mine", "--optim.gammas", "0.1, 0.2", "--optim.powers", "3", "--optim.kind", "b"]
    words += ["--augment.transforms", f'[{{ name = "{code}:Tint" }}]', "--augment.Tint.color", "1,2,3"]
    loaded = recipe.load(plain, [*words, "--optim.betas", "0.8", "--optim.note", "a,b"])
    found = {"gammas": (0.1, 0.2), "powers": [3], "betas": 0.8, "note": "a,b", "kind": "b"}
    assert vars(loaded.optim).items() >= found.items()
    assert vars(loaded.augment.transforms[0])["color"] == (1, 2, 3)
    for mistake, says in (
        (["--optim.gammas", "0.1,x"], r"optim\.gammas\[1\] 'x' must be a valid number"),
        (["--optim.betas", "0.8,0.9"], r"optim\.betas '0\.8,0\.9' must be a valid number"),
        (["--augment.Tint.color", "1,2"], r"color \[1, 2\] must be 3 numbers, such as 0,0,0"),
    ):
        with pytest.raises(UserError, match=f"^the command line: .*{says}"):
            recipe.load(plain, [*words, *mistake])
    (tmp_path / "mine.toml").write_text(f'[optim]\nname = "{code}:Mine"\ngammas = "0.1,0.2"\n')
    with pytest.raises(UserError, match=r"mine\.toml: optim\.gammas '0\.1,0\.2' must be a list$"):
        recipe.load(str(tmp_path / "mine.toml"))


def test_the_home_folder_is_expanded_in_every_path(plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--data.path=~/shards", "--run.dir", "~/runs", "--model.pretrained=~/w.pth"]
    loaded = recipe.load("~/plain.toml", words)
    found = (loaded.data.path, loaded.run.dir, loaded.model.pretrained)
    assert found == (f"{tmp_path}/shards", f"{tmp_path}/runs", f"{tmp_path}/w.pth")
    above = tmp_path / "above.toml"
    above.write_text('base = "~/plain.toml"\n[run]\ndir = "~"\n')
    assert recipe.load(str(above)).run.dir == str(tmp_path)
    assert recipe.load(plain, ["--model.pretrained", "published"]).model.pretrained == "published"


def test_variables_are_expanded_in_every_path(plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", str(Path(plain).parent))
    (tmp_path / "net.py").write_text("def net(classes, channels): ...\n")
    (tmp_path / "above.toml").write_text('base = "$HERE/plain.toml"\nmodel.name = "$HERE/../$NAME/net.py:net"\n')
    monkeypatch.setenv("NAME", tmp_path.name)
    name = recipe.load("${HERE}/above.toml").model.name
    assert name == "$HERE/../$NAME/net.py:net", "as written: for another user it is another folder"
    assert callable(plugins.load(name))
    with pytest.raises(UserError, match=r"recipe file \$NOT_SET/x\.toml does not exist"):
        recipe.load("$NOT_SET/x.toml")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    loaded = recipe.load(plain, ["--data.path=$SCRATCH/shards", "--run.dir", "${SCRATCH}/runs"])
    assert (loaded.data.path, loaded.run.dir) == ("/scratch/me/shards", "/scratch/me/runs")
    assert user_path("$SCRATCH/out.csv") == Path("/scratch/me/out.csv")
    with pytest.raises(argparse.ArgumentTypeError, match=r"the variable \$NOT_SET in"):
        user_path("$NOT_SET/out.csv")


@pytest.mark.parametrize("name", ["my recipe.toml", "größer.toml"])
def test_a_file_whose_name_cannot_name_a_run_asks_for_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("[train]\nepochs = 3\n")
    with pytest.raises(UserError, match=r"names the run, but name .*; use --run\.name NAME, or rename the file"):
        recipe.load(str(tmp_path / name))
    assert recipe.load(str(tmp_path / name), ["--run.name", "mine"]).run.name == "mine"


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path, ending: str) -> None:
    below, above = tmp_path / "below.toml", tmp_path / "above.toml"
    below.write_bytes(f"\ufeff[train]{ending}epochs = 3{ending}".encode())
    above.write_bytes(f'\ufeffbase = "below.toml"{ending}[optim]{ending}lr = 0.5{ending}'.encode())
    loaded = recipe.load(str(above))
    assert (loaded.train.epochs, loaded.optim.lr) == (3, 0.5)


def test_a_hint_is_accepted_when_it_is_typed(plain: str) -> None:
    """A message suggests a setting in place of a wrong key, never a section, which would be refused."""
    for key in ("--epochs", "--epoch", "--optm.lr", "--schedul.name", "--run.dirr", "--batch-size"):
        with pytest.raises(UserError) as caught:
            recipe.load(plain, [key, "1"])
        (hint,) = re.findall(r"did you mean '(.+?)'", str(caught.value))
        value = {"--schedule.name": "cosine"}.get(hint, "1")
        recipe.load(plain, [hint, value])
    words = ["--model.freeze", "--optim.backbone_lr", "0.1"]
    with pytest.raises(UserError, match=r"use --optim\.backbone_lr 1, or --model\.freeze false$"):
        recipe.load(plain, words)
    for remedy in (["--optim.backbone_lr", "1"], ["--model.freeze", "false"]):
        recipe.load(plain, [*words, *remedy])


def test_a_setting_that_equals_its_default_is_accepted_in_any_form(plain: str) -> None:
    """Including on the command line, where a value without effect would be refused otherwise."""
    assert recipe.load(plain, ["--schedule.start", "0"]).schedule == recipe.load(plain).schedule


def test_model_options_take_any_value_of_toml(plain: str) -> None:
    words = ["--model.options.widths", "[8, 16]", "--model.options.act", "gelu", "--model.options.depth", "3"]
    assert recipe.load(plain, words).model.options == {"widths": [8, 16], "act": "gelu", "depth": 3}


@pytest.mark.parametrize("value", [[[0.1, 0.2]], [[1, 2]], [True, False], [1, 0], [0.5, 1.0], ["yes"], []])
def test_model_options_keep_the_types_of_a_list(plain: str, value: list[object]) -> None:
    read = recipe.load(plain, ["--model.options.x", json.dumps(value)]).model.options["x"]
    assert json.dumps(read) == json.dumps(value), "true and 1 are equal, and differ as text"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--optim.lrr", "1"], "did you mean '--optim.lr'?"),
        (["--train.lr", "1"], "did you mean '--optim.lr'?"),
        (["--epochs", "1"], "did you mean '--train.epochs'?"),
        (["--optm.lr", "1"], "did you mean '--optim.lr'?"),
        (["--optim", "{ lr = 0.1 }"], "--optim is a section and not replaced as a whole; set its keys, as --optim.KEY"),
        (["--optim.lr", "1", "--optim.lr.low", "1"], "unknown setting --optim.lr.low; did you mean '--optim.lr'?"),
        (["--optim.name", "AdamW"], "optim.name 'AdamW' is not known; did you mean 'adamw'?"),
        (["--run.dir", "$NOT_SET/runs"], "run.dir: the variable $NOT_SET in '$NOT_SET/runs' is not set"),
        (["--optim", "sgd"], "--optim is a section; set one of its keys, as --optim.name"),
        (["--optim.lr", "fast"], "optim.lr 'fast' must be a valid number"),
        (["--optim.lr", "nan"], "optim.lr 'nan' must be a finite number"),
        (["--optim.lr", "-1"], "command line: optim.lr -1.0 must be positive"),
        (["--optim.momentum", "2"], "command line: optim.momentum 2.0 must be in [0, 1)"),
        (["--optim..lr", "1"], "--optim..lr has a dot too many; settings are written --section.field VALUE"),
        (["--tracking.wandb", "false"], "tracking.wandb false is not known; known: disabled, offline, online"),
        (["--optim.name", "sgdd"], "command line: optim.name 'sgdd' is not known; did you mean 'sgd'?"),
        (["--schedule.fianl", "1"], "unknown setting --schedule.fianl; did you mean '--schedule.final'?"),
        (["--train.epochs", "2.5"], "train.epochs '2.5' must be a valid integer"),
        (["--schedule.name", "step", "--schedule.milestones", "[1, true]"], "milestones [1, true] must be numbers"),
        (
            ["--eval.batch_size", "99999999999999999999"],
            "eval.batch_size 99999999999999999999 must be at most 2147483647",
        ),
        (["--data.shuffle_block", "2147483648"], "data.shuffle_block 2147483648 must be at most"),
        (["--augment.crop.pad", "2147483648"], "augment.crop.pad 2147483648 must be at most"),
        (["--run.collective_timeout", "99999999999999"], "run.collective_timeout 99999999999999 must be at most"),
        (["--train.batch_size", "131072", "--train.parts", "131072"], "train.parts 131072 must be between 0 and 65536"),
        (
            ["--train.precision", "int8", "--train.compile"],
            "compile default has no convolutions in int8; use --train.compile no, or --train.precision auto",
        ),
        (["--train.threads", "100000"], "train.threads 100000 must be between 0 and 1024"),
        (["--train.epochs"], "--train.epochs requires a value: --train.epochs VALUE"),
        (["--run.name", "--train.epochs", "3"], "--run.name requires a value: --run.name VALUE"),
        (["--optim.learning_rate", "1"], "did you mean '--optim.lr'?"),
        (
            ["--model.num_classes", "3"],
            "unknown setting --model.num_classes; the dataset says how many classes there are",
        ),
        (["--num_classes", "3"], "unknown setting --num_classes; the dataset says how many classes there are"),
        (
            ["--train.batch_size", "7", "--train.accumulate", "2"],
            "batch_size 7 is not divisible by accumulate 2; use 8",
        ),
        (
            ["--schedule.milestones", "[1, 2]"],
            'schedule.milestones has no effect with schedule.name = "onecycle"; remove it, or use --schedule.name step',
        ),
        (
            ["--optim.name", "muon", "--optim.rest", "adamw", "--optim.rest_momentum", "0.5"],
            'optim.rest_momentum has no effect with optim.rest = "adamw"; remove it, or use --optim.rest sgd',
        ),
        (
            ["--optim.betas", "[0.5, 0.5]"],
            'optim.betas has no effect with optim.name = "sgd"; remove it, or use --optim.name adam, adamw or muon',
        ),
        (
            ["--tracking.project", "mine"],
            'tracking.project has no effect with tracking.wandb = "disabled"; remove it, or use --tracking.wandb '
            "offline or online",
        ),
        (
            ["--schedule.start", "0.1"],
            "schedule.start has no effect without warmup; remove it, or set --schedule.warmup",
        ),
        (
            ["--train.min_delta", "0.1"],
            "train.min_delta 0.1 has no effect with patience 0; set --train.patience, or --train.min_delta 0.0",
        ),
        (
            ["--model.freeze", "--optim.backbone_lr", "0.1"],
            "optim.backbone_lr has no effect with model.freeze, which trains the last layer only; "
            "use --optim.backbone_lr 1, or --model.freeze false",
        ),
        (
            ["--model.freeze", "--average.name", "swa", "--average.recalibrate", "100"],
            "average.recalibrate has no effect with model.freeze",
        ),
        (["--optim.name", "mine.py:Lion"], "optim.name 'mine.py:Lion': file mine.py does not exist"),
        (["--run.name", "../x"], "name '../x' must be"),
        (["--run.dir", ""], 'run.dir is empty; name a folder, or use "." for the working directory'),
        (["--optim.name", "adam", "--optim.betas", "0.9"], "optim.betas [0.9] must be 2 numbers, such as 0.9,0.999"),
        (["--optim.name", "adam", "--optim.betas", "[]"], "optim.betas [] must be 2 numbers, such as 0.9,0.999"),
        (["--optim.name", "adam", "--optim.betas", "1,2,3"], "optim.betas [1, 2, 3] must be 2 numbers, such as"),
        (["--schedule.name", "step", "--schedule.milestones=-1"], "schedule.milestones [-1.0] must be above 0"),
        (["--model.options.x.y", "1"], "command line: model.options.x must be true or false, a number, a text, or a"),
        (["--run.name", "a b"], "name 'a b' must be"),
        (["--eval.tta", "flip"], "tta 'flip' must be 0, mirror, translate"),
        (["--augment.mean", "[0.5"], "is not a TOML list"),
        (
            ["--augment.mean", "0.5,0.5,0.5", "--augment.std", "63,62,66"],
            "augment.std [63.0, 62.0, 66.0] must be above 0 and at most 1; divide pixel values by 255",
        ),
        (["--run.no-fresh"], "unknown setting --run.no_fresh; write --run.fresh false"),
        (["--resume"], "the same command resumes its run"),
        (["--nproc_per_node", "2"], "cifar-dist launch ddp --num_processes=N RECIPE"),
        (["--verbosity", "2"], "list them with: cifar-dist train RECIPE --help"),
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


@pytest.mark.parametrize(
    ("own", "words", "remedy"),
    [
        ("[eval]\ntta_below = 0.6\n", "--eval.tta 0", "--eval.tta_below 1"),
        ("[model]\nfreeze = true\n", "--model.unfreeze 1", "--model.freeze false"),
        ("[model]\nfreeze = true\n", "--average.name swa --average.recalibrate 9", "--average.recalibrate 0"),
        ("[train]\naccumulate = 2\n", "--train.parts 4", "--train.accumulate 1"),
        ('[run]\nfrom = "other"\nfrom_other_data = true\n', "--run.from=", "--run.from_other_data false"),
    ],
)
def test_a_remedy_undoes_what_the_recipe_sets(tmp_path: Path, own: str, words: str, remedy: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(own)
    with pytest.raises(UserError, match=f"; use {remedy}, or "):
        recipe.load(str(path), words.split())
    recipe.load(str(path), [*words.split(), *remedy.split()])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[train]\nepoch = 3\n", r": unknown setting train\.epoch; did you mean 'train\.epochs'"),
        (b'"optim.lr" = 0.1\n', r': the key "optim\.lr" has quotes; remove them, or write lr in the section \[optim\]'),
        ("[train]".encode("utf-16"), " is not a UTF-8 text; save it again as UTF-8"),
        (b'[optim]\nname = "adam"\nbetas = [0.9]\n', r": optim\.betas \[0\.9\] must be 2 numbers, such as 0\.9,0\.999"),
        (b'base = ""\n', ": base: the recipe's name is empty; name one that "),
        (b"[train\n", " cannot be read as TOML"),
    ],
)
def test_a_mistake_in_the_file_names_the_file(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"mine\.toml{says}"):
        recipe.load(str(path))


@pytest.mark.parametrize(
    ("section", "key"), [("optim", "lr"), ("train", "max_steps"), ("schedule", "warmup"), ("augment.crop", "pad")]
)
def test_true_in_a_file_is_not_the_number_1(tmp_path: Path, section: str, key: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'base = "demo"\n[{section}]\n{key} = true\n')
    with pytest.raises(UserError, match=rf"mine\.toml: {section}\.{key} true must be a number$"):
        recipe.load(str(path))


def test_a_recipe_may_be_saved_by_an_editor_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf[train]\r\nepochs = 7\r\n")
    assert recipe.load(str(path)).train.epochs == 7


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'demo'"):
        recipe.load("demmo")
    with pytest.raises(UserError, match=r"recipe file nowhere\.toml does not exist"):
        recipe.load("nowhere.toml")


def test_a_run_and_a_sweep_given_as_a_recipe_are_named_with_their_command(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    with pytest.raises(UserError, match=f"{tmp_path} is a run, not .* it: cifar-dist resume {tmp_path}, or"):
        recipe.load(str(tmp_path))
    for text in ('recipe = "demo"\n[grid]\noptim.lr = [0.1]\n', 'recipes = ["demo"]\n', '[[rows]]\nname = "a"\n'):
        sweep = tmp_path / "sweep.toml"
        sweep.write_text(text)
        with pytest.raises(UserError, match=f"{sweep} is a sweep, not a recipe; .*: cifar-dist sweep run {sweep}$"):
            recipe.load(str(sweep))


@given(
    st.builds(
        Config,
        run=st.builds(RunConfig, seed=st.integers(0, 2**31 - 1), name=st.from_regex(r"[a-z0-9_]{1,8}", fullmatch=True)),
        optim=st.builds(
            AdamWConfig,
            lr=st.floats(1e-12, 1e6),
            betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
            weight_decay=st.floats(0, 1),
        )
        | st.builds(MuonSGDConfig, rest_momentum=st.floats(0.1, 0.9), iterations=st.integers(1, 20)),
        schedule=st.builds(StepConfig, milestones=st.just((1.0, 2.5)), gamma=st.floats(0.1, 1))
        | st.just(CosineConfig()),
        train=st.builds(TrainConfig, epochs=st.integers(1, 10**6), label_smoothing=st.floats(0, 0.99)),
    )
)
def test_the_config_of_a_run_folder_is_the_config_that_ran(tree: Config) -> None:
    """Writing a config and reading it returns the same config, to the last bit of every float."""
    assert build_config(tomllib.loads(to_toml(tree)), where="here") == tree


@given(st.lists(st.text(max_size=20), max_size=4))
def test_no_command_line_causes_anything_but_a_user_error(words: list[str]) -> None:
    message = ""
    try:
        recipe.load("demo", words)
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1, message


@pytest.mark.parametrize(
    ("content", "words", "source"),
    [
        ("[optim]\nmomentum = 2.0", ["--optim.lr", "0.1"], "FILE: optim.momentum 2.0 "),
        ("[optim]\nmomentum = 2.0", ["--optim.momentum", "3"], "the command line: optim.momentum 3.0 "),
        ('[average]\nname = "ema"\nstart = 100', ["--run.name", "x"], "FILE: average.start 100.0 "),
        ('[average]\nname = "ema"\nstart = 3', ["--train.epochs", "2"], "the command line: average.start 3.0 "),
        ("[optim]\nweight-decay = 0.5", [], "FILE: unknown setting optim.weight-decay; did you mean 'optim.weight_d"),
        ("[optim]\nmomentun = 0.5", ["--optim.lr", "0.1"], "FILE: unknown setting optim.momentun"),
        ("", ["--optim.momentun", "0.5"], "the command line: unknown setting --optim.momentun"),
    ],
)
def test_a_mistake_is_blamed_on_what_has_it(tmp_path: Path, content: str, words: list[str], source: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        recipe.load(str(path), words)
    assert str(caught.value).startswith(source.replace("FILE", str(path)))


def test_only_a_run_that_nothing_names_gets_another_name(tmp_path: Path) -> None:
    path = tmp_path / "first.toml"
    path.write_text("")
    for words, name in (([], "first-2"), (["--run.name", "first"], "first"), (["--run.name", "other"], "other")):
        assert recipe.load_named(str(path), words, lambda config: f"{config.run.name}-2").run.name == name
    path.write_text('[run]\nname = "first"')
    assert recipe.load_named(str(path), [], lambda config: f"{config.run.name}-2").run.name == "first"


@pytest.mark.parametrize("value", ["nan", "[1.0, inf]", "[[-inf]]", '[8, "wide"]'])
def test_a_number_is_no_text_in_the_options_of_a_model(tmp_path: Path, value: str) -> None:
    path = tmp_path / "wide.toml"
    path.write_text(f"[model.options]\nwidth = {value}\n")
    with pytest.raises(
        UserError, match=r"wide\.toml: model\.options\.width must be true or false, a number, a text, or"
    ):
        recipe.load(str(path))


@pytest.mark.parametrize("depth", [60, 5_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a = ", "}")])
def test_deep_nesting_is_one_line(tmp_path: Path, depth: int, opening: str, closing: str) -> None:
    value = opening * depth + "1" * (opening != "[") + closing * depth
    path = tmp_path / "deep.toml"
    path.write_text(f"[model]\noptions = {value}\n")
    ways: list[Callable[[], object]] = [lambda: recipe.load(str(path)), lambda: read_config(path)]
    for load in ways:
        with pytest.raises(UserError, match="cannot be read as TOML: it is nested more than 50 deep"):
            load()
    with pytest.raises(UserError, match=r"--model.options: "):
        recipe.load("demo", ["--model.options", value])
