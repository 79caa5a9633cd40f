"""``cifar-dist launch``: trains and runs other collective verbs, and finds its configs."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from support.running import PATIENCE, ROOT, environment, finish, spawn, start, wait_until

from cifar_dist.errors import UserError
from cifar_dist.launch.configs import config_names, find_config
from cifar_dist.launch.launcher import options_of_accelerate
from cifar_dist.verbs.launch import split_options
from cifar_dist.verbs.registry import VERBS
from launch import soak


def launch(*words: str | Path, cwd: Path = ROOT, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    python = f"{env['CIFAR_DIST_VENV']}/bin/python" if "CIFAR_DIST_VENV" in env else sys.executable
    command = [python, "-m", "cifar_dist", "launch", *words]
    return subprocess.run(command, env=environment(env), cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)


def test_it_trains_a_recipe_and_runs_another_verb_in_a_folder_full_of_traps(
    digits: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    """The working folder has its own ``cifar_dist`` and ``queue``; the ranks must import neither.

    Its environment is that of a pod of Kubernetes, with options of torchrun for another job.
    """
    recipe = soak.write_recipe(tmp_path, digits)
    for name in ("cifar_dist", "queue", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    pod = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "127.0.0.1"}
    env = {"PYTHONSAFEPATH": "1", **pod}
    trained = launch("cpu", recipe, "--run.name", "it", "--train.max_steps", "3", cwd=tmp_path, env=env)
    assert trained.returncode == 0, trained.stderr
    assert "2 processes, DDP, cpu" in trained.stdout
    extended = launch("cpu", "resume", tmp_path / "runs" / "it", "--train.max_steps", "5", env=forked)
    assert extended.returncode == 0, extended.stderr
    assert "finished after step 5 of 5: train.max_steps" in extended.stdout
    evaluated = launch("cpu", "--num_processes=2", "evaluate", tmp_path / "runs" / "it", env=forked)
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.startswith("test: accuracy ")


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_an_evaluation_ends_on_request(digits: Path, tmp_path: Path, forked: dict[str, str], verb: str) -> None:
    """Ranks ignore the request while they start; the launcher repeats it."""
    run, out = tmp_path / "runs" / "it", tmp_path / "predictions.csv"
    words = [str(soak.write_recipe(tmp_path, digits)), "--run.name=it", "--train.max_steps=1", "--eval.batch_size=1"]
    assert spawn(["-m", "cifar_dist", "train", *words])[0].returncode == 0
    before = sorted((run / "evaluations").iterdir())
    words = [verb, str(run), *([str(digits), f"--out={out}"] if verb == "predict" else []), "--tta=1024"]
    (asked,) = start(["-m", "cifar_dist", "launch", "cpu", "--num_processes=2", *words], env=forked)
    wait_until(lambda: bool(psutil.Process(asked.pid).children()), [asked])
    asked.send_signal(signal.SIGTERM)
    (stopped,) = finish([asked])
    assert stopped.returncode == 75, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "cifar-dist: stopped by TERM"
    assert sorted((run / "evaluations").iterdir()) == before
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["cpu", "pack", "digits", "out"], "pack runs in one process; use: cifar-dist pack digits out"),
        ([], "name a config; configs: cpu ddp fsdp single zero1 zero2 zero2-offload zero3; usage: cifar-dist launch "),
        (["cup", "demo"], "launch/cup.yaml does not exist; configs: cpu ddp fsdp"),
        (["cpu"], "name a recipe; usage: cifar-dist launch CONFIG"),
        (["demo"], "name a config before the recipe: cifar-dist launch cpu demo; configs: cpu ddp fsdp"),
        (["cpu", "launch", "cpu", "demo"], "launch runs in one process"),
        (
            ["--num_processes=3", "cpu", "demo"],
            "CONFIG must come first, then its options: cifar-dist launch CONFIG --",
        ),
        (["--multi_gpu", "demo"], "'--multi_gpu' is what CONFIG chooses; use: cifar-dist launch ddp RECIPE"),
        (["cpu", "--multi_gpu", "demo"], "'--multi_gpu' is what CONFIG chooses; use: cifar-dist launch ddp RECIPE"),
        (["single", "--num_processes=2", "demo"], f"{ROOT}/launch/single.yaml starts one process"),
        (["cpu", "--debug=yes", "demo"], "accelerate launch: argument --debug: ignored explicit argument 'yes'; its"),
        (
            ["none.yaml", "demo"],
            "launch config none.yaml does not exist; configs: cpu ddp fsdp single zero1 zero2 zero2-offload zero3",
        ),
    ],
)
def test_it_refuses_bad_input_in_one_line(forked: dict[str, str], words: list[str], says: str) -> None:
    done = launch(*words, env=forked)
    assert done.returncode == 2
    assert done.stderr.startswith(f"cifar-dist: {says}")
    assert done.stderr.count("\n") == 1


def test_help_lists_configs_and_collective_verbs() -> None:
    done = launch("--help", env={})
    assert done.returncode == 0
    assert "configs: cpu ddp fsdp single zero1 zero2 zero2-offload zero3" in done.stdout
    assert "doctor" in done.stdout


def test_options_of_accelerate_end_at_the_first_other_word() -> None:
    assert split_options(["--num_processes=2", "demo", "--optim.lr=1"]) == (
        ["--num_processes=2"],
        ["demo", "--optim.lr=1"],
    )


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (["--num_processes", "2", "demo"], "; write it as --num_processes=2"),
        (["--num-processes", "demo"], "; write it as --num_processes=VALUE"),
        (["--processes", "2", "demo"], "; write it as --num_processes=2"),
        (["--nproc-per-node=2", "demo"], "; write it as --num_processes=2"),
        (["-n=2", "demo"], "; write it as --num_processes=2"),
        (["-t", "3", "demo"], "; write it as --tee=3"),
        (["--nnodes", "1:2", "demo"], "; write it as --nnodes=1:2"),
        (
            ["-m", "demo"],
            ", and only those with a value are taken; leave it out, or give the path of",
        ),
        (
            ["--debug", "demo"],
            ", and only those with a value are taken; leave it out, or give the path of",
        ),
        (
            ["--tta", "4", "evaluate", "x"],
            ", and is none of them; write it after the recipe if it belongs there",
        ),
        (["--optim.lr", "1", "demo"], "; a setting follows the recipe: cifar-dist launch CONFIG RECIPE --optim.lr 1"),
        (["--optim.lr=1", "demo"], "; a setting follows the recipe: cifar-dist launch CONFIG RECIPE --optim.lr=1"),
        (
            ["--run.fresh", "demo", "--run.name", "x"],
            "; a setting follows the recipe: cifar-dist launch CONFIG RECIPE",
        ),
    ],
)
def test_an_option_that_is_written_otherwise_has_a_way_that_is_not_refused(words: list[str], way: str) -> None:
    with pytest.raises(UserError) as refused:
        split_options(words)
    said = str(refused.value)
    assert said.startswith(f"'{words[0]}' precedes the recipe, where options of accelerate launch are{way}")
    if " as " in said:
        taken = said.rpartition(" as ")[2]
        assert split_options([taken, "demo"]) == ([taken], ["demo"])
        name, _, value = taken.removeprefix("--").partition("=")
        assert value == "VALUE" or options_of_accelerate()[name] == name


def test_an_installed_package_finds_configs_in_the_working_folder(tmp_path: Path) -> None:
    """A wheel contains no configs: this is the package alone, in another folder."""
    shutil.copytree(ROOT / "cifar_dist", tmp_path / "site" / "cifar_dist")
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "cifar_dist", "launch", "mine", "demo", "--help"]
    env = {**environment(), "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=env, cwd=work, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    searched = f"searched {tmp_path}/site/launch and {work}/launch"
    assert done.stderr.startswith(f"cifar-dist: launch/mine.yaml does not exist; {searched}; ")
    (work / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "single.yaml", work / "launch" / "mine.yaml")
    done = subprocess.run(command, env=env, cwd=work, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "usage: cifar-dist train RECIPE" in done.stdout


def test_a_config_is_a_name_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launch").mkdir()
    for name in ("ddp", "mine"):
        (tmp_path / "launch" / f"{name}.yaml").touch()
    assert find_config("ddp") == ROOT / "launch" / "ddp.yaml", "the repository's comes first"
    assert find_config("mine") == tmp_path / "launch" / "mine.yaml"
    assert find_config("launch/ddp.yaml") == Path("launch/ddp.yaml")
    for path in ("my.yml", "my.json", "launch/mine", "~/launch/mine"):
        monkeypatch.setenv("HOME", str(tmp_path))
        place = Path(path).expanduser()
        with contextlib.suppress(FileExistsError):
            place.touch(exist_ok=False)
        assert find_config(path) == place
    for path in ("none.yml", "none.json", "nowhere/none"):
        with pytest.raises(UserError, match=f"^launch config {path} does not exist; configs: "):
            find_config(path)
    assert config_names() == ["cpu", "ddp", "fsdp", "mine", "single", "zero1", "zero2", "zero2-offload", "zero3"]


def test_the_agent_loads_no_torch() -> None:
    """Only its fork does, because the agent lives beside the ranks as long as the job."""
    code = "import sys, cifar_dist.launch.agent; print(*{'torch', 'accelerate', 'numpy'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout == "\n", done.stderr


def test_every_collective_verb_declares_it() -> None:
    assert {name for name, verb in VERBS.items() if verb.COLLECTIVE} == {
        "train",
        "resume",
        "replay",
        "doctor",
        "lr-find",
        "evaluate",
        "predict",
    }
