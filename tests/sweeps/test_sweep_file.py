"""A sweep file gives named runs with validated configs, and a mistake in it is one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_dist import recipe
from cifar_dist.config.average import EMAConfig, LookaheadConfig, NoAverageConfig
from cifar_dist.config.overrides import parse_overrides
from cifar_dist.data.transforms.affine import Affine
from cifar_dist.data.transforms.crop import Crop
from cifar_dist.data.transforms.flip import Flip
from cifar_dist.data.transforms.jitter import Jitter
from cifar_dist.errors import UserError
from cifar_dist.sweeps import sweep_file
from cifar_dist.sweeps.sweep import Sweep
from cifar_dist.sweeps.sweep_file import load

BASE = """
[data]
path = "shards/digits"
[model]
name = "tiny-resnet"
options = { widths = [8, 16] }
[train]
epochs = 3
batch_size = 100
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base.toml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(text: str, *words: str, seeds: int | None = None) -> Sweep:
    Path("mine.toml").write_text(text)
    return load("mine.toml", words, seeds)


def names(found: Sweep) -> list[str]:
    return [row.name for row in found.rows]


def test_rows_are_recipes_times_the_grid_and_then_the_named_ones(folder: Path) -> None:
    (folder / "other-0.2.toml").write_text(BASE)
    found = made(
        """
        recipes = ["base.toml", "other-0.2.toml"]
        grid = { optim.lr = [0.1, 1e-5], train.channels_last = [true, false] }
        [[rows]]
        name = "adam"
        recipe = "base.toml"
        optim.name = "adam"
        """
    )
    assert names(found) == [
        f"{base}+lr={lr}+channels_last={last}"
        for base in ("base", "other-0.2")
        for lr in ("0.1", "1e-05")
        for last in ("true", "false")
    ] + ["adam"]
    config = found.rows[3].runs[0].config
    assert (config.optim.lr, config.train.channels_last, config.train.epochs) == (1e-5, False, 3)
    assert found.rows[-1].runs[0].config.optim.name == "adam"


def test_each_row_has_a_run_for_each_seed_and_all_rows_come_before_the_next_seed(folder: Path) -> None:
    found = made('recipe = "base.toml"\nseeds = [3, 1]\ngrid.optim.lr = [0.1, 0.2]')
    assert [run.name for run in found.runs] == [
        *("mine.lr=0.1.s3", "mine.lr=0.2.s3"),
        *("mine.lr=0.1.s1", "mine.lr=0.2.s1"),
    ]
    assert [run.config.run.seed for run in found.runs] == [3, 3, 1, 1]
    assert [run.folder.path for run in found.runs] == [Path("runs", run.name) for run in found.runs]
    assert [run.config.run.seed for run in made('recipe = "base.toml"', seeds=2).runs] == [0, 1]


def test_a_recipe_alone_is_one_row_with_its_name(folder: Path) -> None:
    assert names(made('recipe = "base.toml"\nseeds = 5')) == ["base"]


def test_a_row_keeps_its_name_when_others_are_added(folder: Path) -> None:
    few = made('recipe = "base.toml"\ngrid.optim.lr = [0.1]')
    more = made('recipe = "base.toml"\ngrid.optim.lr = [0.3, 0.1]\n[[rows]]\nname = "x"\noptim.lr = 1.0', seeds=3)
    assert {run.name for run in few.runs} < {run.name for run in more.runs}


def test_a_later_setting_wins_and_the_command_line_comes_last(folder: Path) -> None:
    found = made(
        """
        recipe = "base.toml"
        [settings]
        train.epochs = 5
        "train.batch_size" = 50
        run.dir = "elsewhere"
        [[rows]]
        name = "long"
        train.epochs = 9
        [[rows]]
        name = "short"
        """,
        *("--train.batch_size", "25", "--train.channels-last"),
    )
    long, short = (row.runs[0].config for row in found.rows)
    assert (long.train.epochs, short.train.epochs) == (9, 5)
    assert (long.train.batch_size, long.train.channels_last, long.run.dir) == (25, True, "elsewhere")


PADDED = """
recipe = "base.toml"
settings.augment.crop.pad = 2
grid.augment.transforms = [[{ name = "crop", pad = 1 }], [{ name = "crop" }], [{ name = "flip" }]]
"""


def test_a_row_with_a_list_of_transforms_replaces_what_the_settings_say_of_one(folder: Path) -> None:
    rows = made(PADDED).rows
    assert [row.runs[0].config.augment.transforms for row in rows] == [(Crop(pad=1),), (Crop(),), (Flip(),)]


@pytest.mark.parametrize(
    "settings",
    [
        "augment.crop.pad = 2\naugment.transforms = [{ name = 'crop', pad = 1 }]",
        "augment.transforms = [{ name = 'crop', pad = 1 }]\naugment.crop.pad = 2",
    ],
)
def test_one_table_may_have_a_list_of_transforms_and_settings_of_them_in_any_order(folder: Path, settings: str) -> None:
    for text in (f"[settings]\n{settings}", f"[[rows]]\nname = 'x'\n{settings}"):
        (run,) = made(f'recipe = "base.toml"\n{text}').runs
        assert run.config.augment.transforms == (Crop(pad=2),)


def test_a_row_changes_one_transform_of_the_list_in_the_settings(folder: Path) -> None:
    settings = "augment.transforms = [{ name = 'crop', pad = 1 }, { name = 'flip' }]"
    (run,) = made(f'recipe = "base.toml"\n[settings]\n{settings}\n[[rows]]\nname = "x"\naugment.crop.pad = 2').runs
    assert run.config.augment.transforms == (Crop(pad=2), Flip())


def test_a_row_with_another_choice_does_not_inherit_the_settings_of_the_one_in_settings(folder: Path) -> None:
    text = """
        recipe = "base.toml"
        [settings]
        average = { name = "ema", decay = 0.999, every = 1, recalibrate = 5 }
        [[rows]]
        name = "ema"
        average.decay = 0.9
        [[rows]]
        name = "lookahead"
        average.name = "lookahead"
        [[rows]]
        name = "none"
        average.name = "none"
    """
    ema, lookahead, none = (row.runs[0].config.average for row in made(text).rows)
    assert ema == EMAConfig(decay=0.9, every=1, recalibrate=5)
    assert lookahead == LookaheadConfig(recalibrate=5), "which both have, with one default"
    assert none == NoAverageConfig()
    words = ["--average.name", "lookahead"]
    (run,) = made(text.partition("[[rows]]")[0], *words).runs
    assert run.config.average == lookahead, "as a row does"


def test_settings_without_a_choice_are_those_of_all_rows(folder: Path) -> None:
    rows = made('recipe = "base.toml"\nsettings.optim.lr = 0.3\ngrid.optim.name = ["sgd", "adam"]').rows
    assert [row.runs[0].config.optim.lr for row in rows] == [0.3, 0.3]


@pytest.mark.parametrize("named", [False, True])
def test_a_row_with_another_model_does_not_inherit_the_options_in_settings(folder: Path, named: bool) -> None:
    """They are of the recipe's, if the settings have no name."""
    first, other = ("small-resnet", "tiny-resnet") if named else ("tiny-resnet", "small-resnet")
    name = f"settings.model.name = '{first}'\n" if named else ""
    text = f'recipe = "base.toml"\n{name}settings.model.options = {{ widths = [4, 8] }}\n'
    rows = made(f'{text}grid.model.name = ["{first}", "{other}"]').rows
    options = [row.runs[0].config.model.options for row in rows]
    assert options == [{"widths": [4, 8]}, {"widths": [8, 16]} if named else {}]
    (run,) = made(text, "--model.name", other).runs
    assert run.config.model.options == options[1]


def test_each_setting_of_the_command_line_is_one_word_that_is_not_empty(folder: Path) -> None:
    """As slurm/sweep.sbatch requires, which splits them again."""
    typed = ["--tracking.entity", "", "--train.batch-size", "25", "--train.channels_last"]
    typed += ["--optim.name", "adam", "--optim.betas", "0.8, 0.9", "--model.options.widths", "[4, 8]"]
    (run,) = made('recipe = "base.toml"\nsettings.tracking.wandb = "offline"', *typed).runs
    assert run.words[2:4] == ("--tracking.entity=", "--train.batch_size=25")
    assert all(run.words)
    assert all("=" in word for word in run.words[1:])
    assert recipe.load(run.words[0], run.words[1:]) == run.config
    assert (run.config.train.channels_last, run.config.model.options) == (True, {"widths": [4, 8]})


def test_the_arguments_of_a_run_reproduce_its_config(folder: Path) -> None:
    text = """
        recipe = "base.toml"
        [settings]
        augment.transforms = [{ name = "jitter", hue = 0.1 }, { name = "affine", scale = [0.9, 1.2] }]
        augment.jitter.contrast = 0.3
        model.options = { widths = [4, 8], act = "3", deep = true }
        model.pretrained = ""
        """
    (run,) = made(text).runs
    again = recipe.load(run.words[0], run.words[1:])
    assert again == run.config
    assert again.augment.transforms == (Jitter(hue=0.1, contrast=0.3), Affine(scale=(0.9, 1.2)))
    assert again.model.options == {"widths": [4, 8], "act": "3", "deep": True}


_VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, min_size=1, max_size=3),
    max_leaves=4,
)


@given(_VALUES)
def test_a_models_option_reaches_the_run_as_the_file_has_it(value: object) -> None:
    word = sweep_file._override_word("model.options.any", value)
    (read,) = parse_overrides([word]).values()
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("name", sweep_file.shipped())
def test_every_shipped_sweep_is_valid_and_says_what_it_is(name: str) -> None:
    found = load(name)
    assert len(found.rows) > 1
    assert len({run.name for run in found.runs}) == len(found.runs)
    assert sweep_file._find_file(name).read_text().startswith("# ")


def test_the_shipped_studies_have_the_rows_of_their_source() -> None:
    rows = {"architecture-blocks": 7, "architecture-depth": 8, "architecture-head": 13, "augmentation": 5}
    rows |= {"batch-size": 4, "lr-weight-decay": 5, "optimizer": 8}
    assert {name: len(load(name).rows) for name in rows} == rows
    last = load("augmentation").rows[-1].runs[0].config.augment
    assert last == recipe.load("small-resnet/baseline").augment, "cumulative: the last row is the whole"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'recipe = "base.toml"\nsettngs.optim.lr = 1',
            "mine.toml: a sweep has no key 'settngs'; did you mean 'settings'?",
        ),
        (
            'recipe = "base.toml"\n"optim.lr" = 1',
            "a sweep has no key 'optim.lr'; put settings for all runs into [settings]",
        ),
        (
            'recipe = "base.toml"\n[optim]\nlr = 1',
            "a sweep has no key 'optim'; put settings for all runs into [settings]",
        ),
        ("[optim]\nlr = 1", "mine.toml is a recipe, not a sweep; train it: cifar-dist train mine.toml"),
        (
            f'recipe = "base.toml"\nsettings{".a" * 9999} = 1',
            "mine.toml cannot be read as TOML: it is nested more than 50 deep",
        ),
        (
            'recipe = "base.toml"\nsettings.train.epoch = 1',
            "[settings]: unknown setting train.epoch; did",
        ),
        (
            'recipe = "base.toml"\nsettings.optim.rl = 1',
            "mine.toml row 'base': unknown setting --optim.rl; did you",
        ),
        (
            'recipe = "base.toml"\ngrid.train.epoch = [1]',
            "[grid]: unknown setting train.epoch; did you mean 'train.epochs'?",
        ),
        ('recipe = "base.toml"\ngrid.optim.lr = 1', "[grid]: optim.lr is 1; use a list of values, or move it to"),
        ('recipe = "base.toml"\ngrid.optim.lr = []', "[grid]: optim.lr is []; use a list of values"),
        ('recipe = "base.toml"\ngrid = [1]', "[grid] is [1]; use a table of settings"),
        (
            'recipe = "base.toml"\n[[rows]]\nname = "a"\nmodel.options = {}',
            "mine.toml row 'a': model.options = {} changes nothing, so remove it; for the defaults of the model, vary",
        ),
        ('recipe = "base.toml"\nsettings.augment.crop = {}', "[settings]: augment.crop = {} changes nothing, so"),
        ('recipe = "base.toml"\nsettings.optim = 3', "[settings]: optim is a section; set one of its keys"),
        (
            'recipe = "base.toml"\n[[rows]]\nname = "a"\n[[rows]]\nname = "b"\noptim.lr = -1.0',
            "mine.toml row 'b': optim.lr -1.0 must be positive",
        ),
        (
            'recipe = "base.toml"\n[[rows]]\nname = "a"\noptim.lr = 1979-05-27',
            "mine.toml row 'a': optim.lr '\"1979-05-27\"' must be a valid number",
        ),
        ('recipe = "base.toml"\n[[rows]]\nname = "../b"', "mine.toml row '../b': run.name 'mine.../b.s0' must be"),
        ('recipe = "base.toml"\n[[rows]]\noptim.lr = 1', "row 1 of [[rows]] has no name"),
        ('recipe = "base.toml"\n[[rows]]\nname = ""', "row 1 of [[rows]] has no name"),
        ('recipe = "base.toml"\n[rows]\nname = "a"', "rows is not a list of tables; write each row as [[rows]]"),
        ('recipe = "base.toml"\nrows = ["a"]', "rows is not a list of tables; write each row as [[rows]]"),
        ('recipe = "base.toml"\n[[rows]]\nname = "a"\n[[rows]]\nname = "A"', "two rows are named 'A'"),
        ('recipe = "base.toml"\n[[rows]]\nname = "A"\n[[rows]]\nname = "a"', "two rows are named 'a'"),
        ('recipe = "base.toml"\nsettings.run.name = "a"', "run.name cannot be set in a sweep"),
        ('recipe = "base.toml"\ngrid.run.seed = [1, 2]', "run.seed cannot be set in a sweep; use seeds = [...]"),
        (
            'recipe = "base.toml"\n[[rows]]\nname = "a"\nrun.fresh = true',
            "row 'a': run.fresh cannot be set in a sweep, which resumes its runs; remove it",
        ),
        ('recipe = "base.toml"\nseeds = 0', "seeds is 0; use a count"),
        ('recipe = "base.toml"\nseeds = -1', "seeds is -1; use a count"),
        ('recipe = "base.toml"\nseeds = []', "seeds is []; use a count"),
        ('recipe = "base.toml"\nseeds = [0.5]', "seeds is [0.5]; use a count"),
        ('recipe = "base.toml"\nseeds = [1, 1]', "seeds is [1, 1]; use a count"),
        ('recipe = "base.toml"\nseeds = [-1]', "mine.toml row 'base': run.seed -1 must be between"),
        ('recipe = "base.toml"\nseeds = 10000\ngrid.optim.lr = [1, 2]', "gives 20,000 runs; the limit is 10,000"),
        ('recipe = "dmeo"', "mine.toml row 'dmeo': unknown recipe 'dmeo'; did you mean 'demo'?"),
        ('recipe = ["demo"]', "recipe is ['demo']; use one name or path, or recipes"),
        ('recipe = "demo"\nrecipes = ["demo"]', 'set either recipe = "..." or recipes'),
        ('recipes = "demo"', 'set either recipe = "..." or recipes'),
        ("recipes = [1]", 'set either recipe = "..." or recipes'),
        ("", "mine.toml has no recipe; add recipe"),
        ('[[rows]]\nname = "a"', "mine.toml row 'a' has no recipe; add recipe"),
        ("recipe = ", "mine.toml cannot be read as TOML"),
        (f"recipe = {'[' * 9999}", "mine.toml cannot be read as TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(folder: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        made(text)
    assert "\n" not in str(error.value)
    assert "command line" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optim.rl", "1"], "the command line: unknown setting --optim.rl; did you mean '--optim.lr'?"),
        (["--optim.lr", "1"], "the command line: --optim.lr is varied by mine.toml; drop it"),
        (["--run.name", "a"], "the command line: run.name cannot be set in a sweep"),
        (["--run.fresh"], "the command line: run.fresh cannot be set in a sweep, which resumes its runs; remove it"),
        (
            ["--train.epochs", "0"],
            "mine.toml row 'lr=0.1' with the settings of the command line: train.epochs 0 must be",
        ),
        (["epochs"], "unexpected 'epochs'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(folder: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        made('recipe = "base.toml"\ngrid.optim.lr = [0.1]', *words)


@pytest.mark.parametrize(
    ("varied", "words"),
    [
        ("model.options.widths = [[4, 8], [8, 16]]", ["--model.options", "{}"]),
        ("model.options = [{}, { widths = [4, 8] }]", ["--model.options.widths", "8,16"]),
        ("augment.transforms = [[{ name = 'crop' }], []]", ["--augment.crop.pad", "3"]),
        ("augment.crop.pad = [1, 2]", ["--augment.transforms", "[]"]),
    ],
)
def test_a_setting_of_the_command_line_that_replaces_what_rows_vary_is_refused(
    folder: Path, varied: str, words: list[str]
) -> None:
    with pytest.raises(UserError, match=rf"^the command line: {words[0]} is varied by mine\.toml; drop it"):
        made(f'recipe = "base.toml"\ngrid.{varied}', *words)


def test_a_grid_too_large_is_refused_before_it_is_made(folder: Path) -> None:
    keys = "\n".join(f"model.options.a{n} = [{', '.join(map(str, range(99)))}]" for n in range(9))
    with pytest.raises(UserError, match="gives more than 10,000 rows"):
        made(f'recipe = "base.toml"\n[grid]\n{keys}')


def test_rows_are_named_by_what_varies(folder: Path) -> None:
    lists = made('recipe = "base.toml"\ngrid.model.options.widths = [[4, 8], [8, 16]]')
    assert names(lists) == ["widths=4_8", "widths=8_16"]
    equal = made('recipe = "base.toml"\n[grid]\noptim.name = ["sgd"]\nschedule.name = ["cosine", "linear"]')
    assert names(equal) == ["optim.name=sgd+schedule.name=cosine", "optim.name=sgd+schedule.name=linear"]


LONG = """{ name = "crop", pad = 3 }, { name = "flip" }, { name = "affine", rotation = 10.0, scale = [0.9, 1.1] },
    { name = "jitter", brightness = 0.2, contrast = 0.2, saturation = 0.2, hue = 0.1 }"""


def test_a_long_list_of_tables_is_named_by_its_items(folder: Path) -> None:
    short = '{ name = "crop", pad = 3 }'
    rows = made(f'recipe = "base.toml"\ngrid.augment.transforms = [[{LONG}], [{short}], []]').rows
    assert [row.name for row in rows] == [
        "transforms=crop_flip_affine_jitter",
        "transforms=-name-=-crop-pad-=-3-",
        "transforms=",
    ]
    assert [len(row.runs[0].config.augment.transforms) for row in rows] == [4, 1, 0]


def test_a_row_that_has_no_name_of_its_own_needs_one_where_its_values_give_none(folder: Path) -> None:
    with pytest.raises(UserError, match=r"two rows are named 'transforms=crop_flip_affine_jitter'; give each its own"):
        made(f'recipe = "base.toml"\ngrid.augment.transforms = [[{LONG}], [{LONG.replace("3", "4")}]]')
    with pytest.raises(UserError, match=r"; rename the sweep's file, or write the row in \[\[rows\]\] with a name$"):
        made(f'recipe = "base.toml"\ngrid.model.options.widths = [{list(range(99))}]')
    with pytest.raises(UserError, match=r"; rename the sweep's file or the row$"):
        made(f'recipe = "base.toml"\n[[rows]]\nname = "{"a" * 130}"')


def test_the_command_line_cannot_name_the_runs(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^the command line: run\.seed cannot be set in a sweep; use seeds = "):
        made('recipe = "base.toml"', "--run.seed", "3")


def test_a_sweep_resumes_the_runs_of_a_recipe_that_refuses_those_that_exist(folder: Path) -> None:
    (folder / "base.toml").write_text(f"run.fresh = true\n{BASE}")
    (run,) = made('recipe = "base.toml"').runs
    assert not run.config.run.fresh
    assert recipe.load(run.words[0], run.words[1:]) == run.config


def test_a_sweep_may_be_saved_by_an_editor_of_windows(folder: Path) -> None:
    (folder / "windows.toml").write_bytes(b'\xef\xbb\xbfrecipe = "base.toml"\r\ngrid.optim.lr = [0.1, 0.2]\r\n')
    assert len(load("windows.toml").rows) == 2


def test_a_recipe_beside_the_sweep_and_not_in_the_working_folder_is_named(folder: Path) -> None:
    (folder / "exp").mkdir()
    (folder / "exp" / "net.toml").write_text(BASE)
    (folder / "exp" / "mine.toml").write_text('recipe = "net.toml"\n')
    says = "exp/mine.toml row 'net': recipe file net.toml does not exist in the working folder; did you mean"
    with pytest.raises(UserError, match=rf"^{re.escape(says)} 'exp/net\.toml'\?$"):
        load("exp/mine.toml")
    (folder / "exp" / "mine.toml").write_text('recipe = "exp/net.toml"\n')
    assert names(load("exp/mine.toml")) == ["net"]


def test_a_file_whose_name_cannot_name_runs_is_to_be_renamed(folder: Path) -> None:
    (folder / "my sweep.toml").write_text('recipe = "base.toml"\n')
    with pytest.raises(UserError, match=r"run\.name 'my sweep\..* must be .*; rename the sweep's file, or write "):
        load("my sweep.toml")


def test_a_missing_sweep_is_named_in_the_error() -> None:
    with pytest.raises(UserError, match="did you mean 'batch-size'"):
        load("batchsize")
    with pytest.raises(UserError, match=r"the sweep file nowhere\.toml does not exist"):
        load("nowhere.toml")
