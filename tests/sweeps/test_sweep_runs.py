"""Real sweeps: interrupted in every way, resumed, and listed in a table."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.run_folders import cells, write_run
from support.running import finish, metrics, pausing, resume, spawn, start, wait_for_pause

from cifar_dist import cli
from cifar_dist.config.overrides import split_settings
from cifar_dist.data.pack import pack
from cifar_dist.errors import UserError
from cifar_dist.run_folder import RunFolder
from cifar_dist.run_folder.kept_plugins import keep_versions
from cifar_dist.sweeps import runner
from cifar_dist.sweeps.sweep_file import load
from cifar_dist.sweeps.table import Table

EPOCHS = 3
SWEEP = ["-m", "cifar_dist", "sweep"]


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> Path:
    """Write a sweep of a run that is interrupted twice, and two that fail at once."""
    (tmp_path / "fresh.toml").write_text(f'base = "{tiny}"\nrun.fresh = true\n')
    path = tmp_path / "three.toml"
    path.write_text(
        f"""
        recipe = "{tmp_path}/fresh.toml"
        [settings]
        train.threads = 1
        checkpoint = {{ every = {EPOCHS}, every_steps = 0 }}
        eval.every = {EPOCHS}
        [[rows]]
        name = "long"
        train.epochs = {EPOCHS}
        [[rows]]
        name = "diverges"
        optim.lr = 1e30
        [[rows]]
        name = "diverges-too"
        optim.lr = 2e30
        """
    )
    return path


def verb(*words: str) -> int:
    return cli.run(["sweep", *words])


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the sweep's own lines."""
    return [line.removeprefix("sweep: ") for line in done.stdout.splitlines() if line.startswith("sweep: ")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no run hears that its sweep was killed")
def test_a_sweep_that_is_killed_and_stopped_resumes_and_finishes(
    file: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    long = RunFolder(tmp_path / "runs" / "three.long.s0")

    # Killed without a signal that it can handle: the run that it had started saves and ends by itself.
    running = start([*SWEEP, "run", str(file)], env={**forked, **pausing(5, tmp_path / "first")})
    paused = wait_for_pause(tmp_path / "first", running)
    running[0].kill()
    resume(paused)
    (killed,) = finish(running)  # to the end of its output, which the run has too
    assert killed.returncode == -signal.SIGKILL
    assert "interrupted after step" in killed.stdout
    steps = len(metrics(long.path))
    assert (long.checkpoints / "latest").resolve().name == f"step-{steps:08d}"

    # Asked to stop, while it trains on two processes: the request goes through the launcher to both.
    running = start([*SWEEP, "run", str(file), "--launch", "cpu"], env={**forked, **pausing(5, tmp_path / "second")})
    paused = wait_for_pause(tmp_path / "second", running)
    running[0].send_signal(signal.SIGTERM)
    resume(paused)
    (stopped,) = finish(running)
    assert stopped.returncode == 75, stopped.stderr
    assert said(stopped) == [
        "three: 3 runs, 0 finished before",
        "1 of 3: three.long.s0",
        "1 of 3: three.long.s0 interrupted",
        "stopped; resume with:",
    ]
    assert f" -m cifar_dist sweep run {file} --launch cpu\n" in stopped.stdout
    assert stopped.stdout.count("resume with:") == 1, "the run itself does not say it"
    assert not long.is_finished()
    assert [path.name for path in long.path.parent.iterdir() if path.is_dir()] == ["three.long.s0"], "no other"

    # Two at a time to the end. One fails, and the next is started.
    (ended,) = spawn([*SWEEP, "run", str(file), "--jobs", "2"], env={**forked, "CUDA_VISIBLE_DEVICES": "-1"})
    assert ended.returncode == 1, ended.stderr
    assert "2 of 3: three.diverges.s0 failed with exit code 1" in said(ended)
    assert said(ended)[-1] == "2 of 3 runs failed: three.diverges.s0, three.diverges-too.s0"
    assert len(re.findall(r"^    cifar-dist: .*not finite", ended.stdout, re.M)) == 2, "what the failed ones said"
    assert "  three.long.s0" not in ended.stdout, "what the others said is in their training.log"
    assert long.is_finished()
    assert [record["step"] for record in metrics(long.path)] == list(range(1, EPOCHS * 13 + 1)), "each step once"

    (table,) = spawn([*SWEEP, "table", str(file)])
    head, _, best, diverges, *_ = cells(table.stdout)
    assert head == ["row", "lr", "epochs", "parameters", "train %", "val %", "test %", "time", "runs"]
    assert all(re.fullmatch(r"\*\*.+\*\*", cell) for cell in best), "the best row is bold"
    assert best[-1] == "**1 of 1**"
    assert diverges[:-1] == ["diverges", "1e+30", "2", "4,010", "", "", "", ""]
    assert diverges[-1] == "0 of 1, failed at epoch 1 of 2"

    # A finished run differs from the one in the file: this is reported, and nothing is trained.
    file.write_text(file.read_text().replace(f"epochs = {EPOCHS}", "epochs = 2"))
    (refused,) = spawn([*SWEEP, "run", str(file)])
    assert refused.returncode == 2
    rename = f"keep that run under another name (cifar-dist runs rename {long.path} NEW)"
    assert refused.stderr == (
        f"cifar-dist: {long.path} was started with train.epochs = {EPOCHS} and this command says 2; {rename}, "
        "delete it, or use another --run.dir for this sweep\n"
    )


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes a shell script stand in for each training; ``$name`` is that of the run."""

    def run(script: str) -> None:
        program = tmp_path / "bin" / "python"
        program.parent.mkdir()
        name = r"""name=$(echo "$*" | sed 's/.*name=\([^ ]*\).*/\1/')"""
        program.write_text(f"#!/bin/sh\n{name}\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return run


INTERRUPTED, FAILED = "interrupted", "failed with exit code 1"
RESUME = "stopped; resume with:"


@pytest.mark.parametrize(
    ("first", "others", "outcomes", "code", "end"),
    [
        ("exit 1", "exit 75", [FAILED, INTERRUPTED], 75, ["1 of 3 runs failed: ", RESUME]),
        ("exit 75", "trap - TERM; kill $$", [INTERRUPTED, INTERRUPTED], 75, [RESUME]),
        ("exit 143", "exit 75", [INTERRUPTED, INTERRUPTED], 75, [RESUME]),
        ("exit 1", "exit 1", [FAILED, FAILED], 1, ["3 of 3 runs failed: "]),
    ],
    ids=["one fails", "some die of the signal", "one exits as a shell would", "nothing is left to resume"],
)
def test_a_run_that_fails_while_the_sweep_stops_is_reported(
    file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    training: Callable[[str], None],
    first: str,
    others: str,
    outcomes: list[str],
    code: int,
    end: list[str],
) -> None:
    """The first run has the sweep stopped once the others listen for the signal."""
    listening = tmp_path / "listening"
    listening.mkdir()
    script = f"""
        case $name in
            three.long.s0)
                trap 'echo the disk is full; {first}' TERM
                while [ $(ls {listening} | wc -l) -lt 2 ]; do sleep 0.05; done
                kill -TERM $PPID;;
            *)
                trap '{others}' TERM
                touch {listening}/$$;;
        esac
        while :; do sleep 0.05; done
    """
    training(script)
    assert runner.run_all(load(str(file), [], None), jobs=3) == code
    lines = capfd.readouterr().out.splitlines()
    own = [line.removeprefix("sweep: ") for line in lines if line.startswith("sweep: ")]
    assert sorted(own[4:7]) == [
        f"1 of 3: three.long.s0 {outcomes[0]}",
        f"2 of 3: three.diverges.s0 {outcomes[1]}",
        f"3 of 3: three.diverges-too.s0 {outcomes[1]}",
    ]
    assert [line.split("three.")[0] for line in own[7:]] == end
    assert ("    the disk is full" in lines) == (outcomes[0] == FAILED), "what a failed run said is printed"


@pytest.mark.parametrize(
    ("long", "others", "code", "end"),
    [
        (
            "exit 69",
            "exit 0",
            69,
            ["1 of 3 runs in use by other processes: three.long.s0; repeat this after them"],
        ),
        (
            "end; rm -r runs/$name/final",
            "exit 0",
            1,
            ["1 of 3 runs ended without results: three.long.s0; repeat this"],
        ),
        ("exit 69", "exit 1", 1, ["2 of 3 runs failed: ", "1 of 3 runs in use by other processes: "]),
        ("end; exit 69", "exit 0", 0, ["all 3 runs are finished"]),
        (
            "test -e runs/three.diverges.s0 || exit 69; end",
            "exit 0",
            0,
            ["1 of 3: three.long.s0", "1 of 3: three.long.s0 finished", "all 3 runs are finished"],
        ),
    ],
    ids=[
        "the other trains on",
        "none has its results",
        "others fail",
        "the other has finished it",
        "the other was killed",
    ],
)
def test_a_run_that_another_sweep_trains_has_not_failed(
    file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    training: Callable[[str], None],
    long: str,
    others: str,
    code: int,
    end: list[str],
) -> None:
    sweep = load(str(file), [], None)
    for run in sweep.runs:
        write_run(tmp_path / "finished" / run.name, run.config, test=0.5)
    training(f"""
        cd {tmp_path}
        end() {{ cp -r finished/$name runs; }}
        case $name in
            three.long.s0) {long};;
            *) {"end" if others == "exit 0" else ":"}; {others};;
        esac
    """)
    other = RunFolder(tmp_path / "runs" / "three.long.s0")
    other.path.mkdir(parents=True)
    if long == "exit 69":
        other.lock()
    assert runner.run_all(sweep) == code
    own = [line.removeprefix("sweep: ") for line in capfd.readouterr().out.splitlines()]
    assert ("1 of 3: three.long.s0 is in use by another process" in own) == ("exit 69" in long)
    assert [line.startswith(begin) for line, begin in zip(own[7:], end, strict=True)] == [True] * len(end), own


@pytest.mark.parametrize(
    ("given", "count", "gpus"),
    [
        (None, 2, ["0", "1"]),
        ("3, 5", 2, ["3", "5"]),
        ("2,-1,3", 1, ["2"]),
        ("MIG-a,MIG-b, MIG-c,-1", 1, ["MIG-a", "MIG-b", "MIG-c"]),
        ("MIG-a,MIG-b", 0, []),
        ("-1", 0, []),
        ("NoDevFiles", 0, []),
        ("", 0, []),
    ],
    ids=["all", "some", "until an invalid one", "parts", "unusable parts", "none", "none by Slurm", "empty"],
)
def test_runs_at_a_time_are_distributed_over_the_gpus_that_cuda_sees(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    training: Callable[[str], None],
    given: str | None,
    count: int,
    gpus: list[str],
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    training(f'echo "$CUDA_VISIBLE_DEVICES" > {tmp_path}/$name; exit 1')
    sweep = load(str(file))
    assert runner.run_all(sweep, jobs=3) == 1
    seen = [(tmp_path / run.name).read_text() for run in sweep.runs]
    assert seen == [f"{gpus[slot % len(gpus)] if gpus else given}\n" for slot in range(3)]


@pytest.mark.parametrize(
    ("words", "change", "said"),
    [
        (["--data.path", "nowhere"], "", "no packed dataset at nowhere: the folder does not exist"),
        ([], "model.options.widths = [3]", "row 'diverges-too': model.options: tiny-cnn has no option 'widths'; "),
        ([], "model.pretrained = 'a.pth'", "row 'diverges-too': model.pretrained: a.pth does not exist; give a "),
        ([], "augment.crop.pad = 40\naugment.crop.fill = 'reflect'", "row 'diverges-too': augment.crop.pad"),
        ([], "augment.mean = [0.5, 0.5]\naugment.std = [1, 1]", "row 'diverges-too': augment.mean has 2 values, "),
        ([], "train.max_steps = 100000", "row 'diverges-too': train.max_steps 100000 is more than the "),
        ([], "train.patience = 2\ndata.hold_out = false", "row 'diverges-too': train.patience needs a validation"),
        ([], "optim.name = 'muon'\nmodel.freeze = true", "row 'diverges-too': optim.name muon needs trainable"),
        (["--launch", "dpp"], "", "launch/dpp.yaml does not exist; configs: cpu ddp "),
        (["--launch", "ddp", "--jobs", "2"], "", "--jobs has no effect with --launch"),
        (["--jobs", "none"], "", "argument --jobs: 'none' is not an integer of at least 1; see: "),
        (["--job", "2"], "", "the command line: unknown setting --job; "),
    ],
)
def test_mistakes_are_reported_before_anything_is_trained(
    file: Path, tmp_path: Path, words: list[str], change: str, said: str
) -> None:
    file.write_text(f"{file.read_text()}\n{change}\n")
    with pytest.raises(UserError) as error:
        verb("run", str(file), *words)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_network_that_cannot_be_built_is_reported_with_the_row_before_anything_is_trained(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text("def net(classes, channels):\n    raise RuntimeError('not today')\n")
    file.write_text(f'{file.read_text()}\nmodel.name = "{tmp_path}/net.py:net"\n')
    says = rf"^row 'diverges-too': the plug-in {tmp_path}/net.py, line 2, raised RuntimeError: not today$"
    with pytest.raises(UserError, match=says):
        verb("run", str(file))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("action", ["run", "submit"])
def test_a_run_on_other_data_is_refused(file: Path, tmp_path: Path, action: str) -> None:
    found = load(str(file), [], None)
    run = found.runs[0]
    write_run(run.folder.path, run.config)
    pack("digits", tmp_path / "other", seed=5, codec="npy", show=False)
    shutil.copy(tmp_path / "other" / "manifest.json", run.folder.path)
    rename = rf"\(cifar-dist runs rename {run.folder.path} NEW\)"
    way = rf"--data\.path, or keep that run under another name {rename}, delete it, or use another --run\.dir for this"
    with pytest.raises(UserError, match=rf"was started on other data than .* now has .* {way} sweep$"):
        verb(action, str(file))


def test_a_sweep_on_many_processes_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="run a sweep as one process, and launch each run on many with --launch"):
        verb("run", str(file))


def test_settings_and_options_of_sbatch_are_separated() -> None:
    words = ["--time=8:00:00", "--optim.lr", "0.1", "-p", "gpu", "--output", "a.b", "--run.fresh", "--gres=gpu:1"]
    words += ["-oa.b", "--augment.mean", "-0.5"]
    settings, options = split_settings(words)
    assert settings == ["--optim.lr", "0.1", "--run.fresh", "--augment.mean", "-0.5"]
    assert options == ["--time=8:00:00", "-p", "gpu", "--output", "a.b", "--gres=gpu:1", "-oa.b"]


def test_submit_without_slurm_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        UserError, match="sbatch is not installed here; log in to the cluster, or use: cifar-dist sweep run"
    ):
        verb("submit", str(file))


def test_submit_refuses_options_that_the_script_cannot_pass_on(file: Path) -> None:
    file.write_text(f'{file.read_text()}\n[settings.tracking]\nwandb = "offline"\nproject = "a\\tb"\n')
    with pytest.raises(UserError, match="a setting contains a tab or a line break"):
        verb("submit", str(file), "--test-only")


def test_runs_on_data_without_the_final_split_finish_and_stay_finished(
    tiny: Path, digits: Path, tmp_path: Path, forked: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(digits, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    del manifest["sha256"]
    del manifest["splits"]["test"]
    (data / "manifest.json").write_text(json.dumps(manifest))
    file = tmp_path / "two.toml"
    file.write_text(
        f'recipe = "{tiny}"\n[settings]\ntrain.epochs = 1\ndata.path = "{data}"\n[grid]\noptim.lr = [0.1, 0.2]'
    )
    (first,) = spawn([*SWEEP, "run", str(file)], env=forked)
    assert first.returncode == 0, first.stderr
    assert "not evaluated: the dataset has no split 'test' to end with; use --eval.split val" in first.stdout
    (again,) = spawn([*SWEEP, "run", str(file)])
    assert said(again) == ["two: 2 runs, 2 finished before", "all 2 runs are finished"]
    (table,) = spawn([*SWEEP, "table", str(file)])
    assert [line[-1].strip("*") for line in cells(table.stdout)[2:]] == ["1 of 1", "1 of 1"]

    # What that warning recommends: the final weights are evaluated, and then again on no split.
    on_val = ["--eval.split", "val"]
    assert {line.runs for line in Table(load(str(file), on_val)).lines} == {"0 of 1, incomplete at epoch 1 of 1"}
    (evaluated,) = spawn([*SWEEP, "run", str(file), *on_val], env=forked)
    assert said(evaluated)[0] == "two: 2 runs, 0 finished before"
    assert said(evaluated)[-1] == "all 2 runs are finished"
    assert all(re.search(r"finished, val \S+ %, final \(val\) \S+ %, ", said(evaluated)[number]) for number in (2, 4))
    assert [(line.runs, line.eval_split) for line in Table(load(str(file), on_val)).lines] == [("1 of 1", "val")] * 2
    for run in load(str(file)).runs:
        shutil.rmtree(run.folder.evaluations)
    assert runner.run_all(load(str(file))) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "sweep: all 2 runs are finished"


def test_a_run_whose_records_or_weights_are_damaged_is_repaired_and_an_outdated_report_is_drawn(
    tiny: Path,
    tmp_path: Path,
    forked: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "three.toml"
    file.write_text(f'recipe = "{tiny}"\nseeds = 3\n[settings]\ntrain.max_steps = 2\ntrain.epochs = 1\n')
    assert spawn([*SWEEP, "run", str(file), "--jobs", "2"], env=forked)[0].returncode == 0
    records, weights, report = (run.folder for run in load(str(file)).runs)
    records.metrics.write_text("junk\n")
    weights.final.write_bytes(weights.final.read_bytes()[:-9])
    report.report.unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        with pytest.raises(UserError, match="sbatch is not installed here"):  # which is asked for what to submit
            verb("submit", str(file))
    (again,) = spawn([*SWEEP, "run", str(file)], env=forked)
    assert again.returncode == 0, again.stderr
    assert said(again)[0] == "three: 3 runs, 1 finished before"
    assert said(again)[-1] == "all 3 runs are finished"
    assert "is damaged (model.safetensors) and is written again" in again.stdout
    assert Table(load(str(file))).lines[0].runs == "3 of 3"
    assert verb("run", str(file)) == 0
    assert f"report: {report.report}" in capsys.readouterr().out
    assert report.report.is_file()
    assert verb("run", str(file)) == 0
    assert "report: " not in capsys.readouterr().out, "all are up to date"


def test_a_run_that_was_evaluated_otherwise_is_not_of_its_row_until_it_is_evaluated_again(
    tiny: Path, tmp_path: Path, forked: dict[str, str]
) -> None:
    file = tmp_path / "one.toml"
    settings = f'recipe = "{tiny}"\n[settings]\ntrain.max_steps = 2\ntrain.epochs = 1\neval.tta = '
    file.write_text(f'{settings}"0"\n')
    assert spawn([*SWEEP, "run", str(file)], env=forked)[0].returncode == 0
    file.write_text(f'{settings}"mirror"\n')
    (table,) = spawn([*SWEEP, "table", str(file)])
    assert cells(table.stdout)[2][-1] == "0 of 1, 1 with another eval.tta"
    (again,) = spawn([*SWEEP, "run", str(file)], env=forked)
    (folder,) = re.findall(
        r"was evaluated with another eval.tta; to evaluate it again, repeat this after: rm -r (\S+)", again.stdout
    )
    shutil.rmtree(folder)
    (evaluated,) = spawn([*SWEEP, "run", str(file)], env=forked)
    assert said(evaluated)[0] == "one: 1 run, 0 finished before"
    assert said(evaluated)[-1] == "its only run is finished"
    (table,) = spawn([*SWEEP, "table", str(file)])
    assert cells(table.stdout)[2][-1].strip("*") == "1 of 1"


NET = """
from torch import nn

def net(classes, channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
"""


@pytest.mark.parametrize("action", ["run", "submit"])
def test_a_run_that_was_trained_with_another_version_of_a_plug_in_is_reported(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    net = tmp_path / "net.py"
    net.write_text(NET)
    file.write_text(f'{file.read_text()}\nmodel.name = "{net}:net"\n')  # of the last row
    sweep = load(str(file))
    for run in sweep.runs:
        write_run(run.folder.path, run.config, test=0.5)
        shutil.copy(Path(run.config.data.path, "manifest.json"), run.folder.path)
        keep_versions(run.folder.plugins, run.config)
    assert verb(action, str(file)) == 0
    assert "another" not in capsys.readouterr().out
    net.write_text(f"{NET}\n# edited\n")
    assert verb(action, str(file)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "another" in line]
    says = "was trained with another net.py; to train it again, repeat this after: rm -r"
    folder = sweep.runs[-1].folder
    assert line == f"sweep: three.diverges-too.s0 {says} {folder.path}"
    shutil.rmtree(folder.evaluations)
    runner.report_other_runs(sweep)
    assert "another net.py so far, and continues with the one here; to train it" in capsys.readouterr().out
    training = RunFolder(folder.path)
    training.lock()
    runner.report_other_runs(sweep)
    assert capsys.readouterr().out == "", "it trains now, with what it began with"
