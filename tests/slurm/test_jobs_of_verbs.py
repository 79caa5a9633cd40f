"""``cifar-dist submit`` and ``cifar-dist doctor`` on two real nodes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support.running import PATIENCE, ROOT, metrics
from support.slurm_cluster import Cluster, Job, until

from cifar_dist.errors import UserError
from cifar_dist.slurm import sbatch
from cifar_dist.slurm.options import Options

pytestmark = pytest.mark.slurm


def submit(cluster: Cluster, folder: Path, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [f"{env['CIFAR_DIST_VENV']}/bin/python", "-m", "cifar_dist", "submit", *words]
    own = {**cluster.env, **env}
    return subprocess.run(command, env=own, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


def test_the_doctor_joins_the_nodes_of_its_job_and_knows_the_grace_of_its_script(
    cluster: Cluster, tiny: Path, forked: dict[str, str]
) -> None:
    """The partition grants 120 s on preemption; the script asks for the signal 2 s before the time limit."""
    script = tiny.parent / "doctor.sbatch"
    script.write_text(
        "#!/bin/bash\n#SBATCH --nodes=2 --signal=USR1@2\n"
        f'srun --ntasks-per-node=1 python -m cifar_dist doctor "{tiny}"\n'
    )
    own = {**cluster.env, **forked}
    done = subprocess.run(
        ["sbatch", "--parsable", script], env=own, cwd=tiny.parent, capture_output=True, text=True, check=True
    )
    job = Job(done.stdout.strip(), tiny.parent, own)
    assert job.wait() == "COMPLETED", job.output()
    table = job.output()
    assert "ranks       ok       node1: 0 (cpu)\nranks       ok       node2: 1 (cpu)\n" in table
    assert f"ports       ok       rank 0 at node1:{20000 + int(job.id) % 12000}; jobs use 20000 to 31999" in table
    assert "2 ranks write, rename and see each other's files, and locks exclude" in table
    assert " of 2 s (--signal=USR1@2)" in table
    assert not (tiny.parent / "runs").exists()


def test_a_submitted_run_is_frozen_and_a_chain_of_jobs_continues_it(
    cluster: Cluster, tiny: Path, forked: dict[str, str]
) -> None:
    """The job inherits no environment: its script and the site's setup contain all that it needs."""
    exports = "".join(f"export {name}={value}\n" for name, value in {**forked}.items())
    (tiny.parent / "setup.sh").write_text(f'echo "module load cuda $UNSET"\n{exports}')
    env = {**forked, "CIFAR_DIST_SETUP": str(tiny.parent / "setup.sh")}
    (tiny.parent / "runs").mkdir()
    refused = submit(cluster, tiny.parent, env, str(tiny), "--partition=nowhere")
    assert refused.returncode == 2
    assert "cifar-dist: sbatch: error: invalid partition specified: nowhere" in refused.stderr
    assert list((tiny.parent / "runs").iterdir()) == [], "nothing is left of a job that Slurm refuses"
    options = ["-p", "high", "-A", "vision", "--comment=a b", "--array=0-1%1", "--output=out-%a.txt"]
    passed = subprocess.run(
        ["sbatch", "--parsable", "--wrap=true"], env=cluster.env, cwd=tiny.parent, capture_output=True, text=True
    )
    dependency = f"--dependency=afterok:{passed.stdout.strip()}"
    net = tiny.parent / "net.py"
    net.write_text("from cifar_dist.models.tiny_cnn import TinyCNN as net\n")
    hold = ["--hold", dependency, "--export=NONE"]
    done = submit(cluster, tiny.parent, env, str(tiny), *options, *hold, "--model.name=net.py:net")
    run = tiny.parent / "runs" / "tiny"
    assert done.returncode == 0, done.stderr
    number = done.stdout.partition(":")[0].removeprefix("job ")
    assert done.stdout == f"job {number}: {run}\n"
    tiny.write_text(tiny.read_text().replace("lr = 0.1", "lr = 9.0"))  # must not matter any more
    net.write_text("half of what the next run")
    job = Job(number, tiny.parent, dict(cluster.env))
    said = job.call("scontrol", "show", "job", number)
    for fact in ("JobName=tiny", "Partition=high", "Account=vision", "Comment=a b", f"Dependency={dependency[13:]}"):
        assert fact in said
    job.call("scontrol", "release", number)
    assert job.wait() == "COMPLETED"
    first, second = ((tiny.parent / f"out-{task}.txt") for task in (0, 1))
    assert first.read_text().startswith("module load cuda \n")
    assert "lr = 0.1\n" in (run / "config.toml").read_text()
    assert "net.py has changed since" in (run / "training.log").read_text()
    assert [record["step"] for record in metrics(run)] == list(range(1, 27))
    until(lambda: "is finished already" in (second.read_text() if second.exists() else ""), second.as_posix)


def test_a_job_that_is_waited_for_and_fails_keeps_its_run(cluster: Cluster, tiny: Path, forked: dict[str, str]) -> None:
    (tiny.parent / "setup.sh").write_text("touch runs/tiny/checkpoint; exit 7\n")
    env = {**forked, "CIFAR_DIST_SETUP": str(tiny.parent / "setup.sh")}
    done = submit(cluster, tiny.parent, env, str(tiny), "--output=out.txt", "--wait")
    assert done.returncode == 7, done.stderr
    assert done.stdout.endswith(f": {tiny.parent}/runs/tiny\n")
    assert {"checkpoint", "config.toml", "job.sbatch"} <= {
        path.name for path in (tiny.parent / "runs" / "tiny").iterdir()
    }


def test_options_that_submit_no_job_leave_no_run(
    cluster: Cluster, tiny: Path, forked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch says something else for each of them, on one stream or the other."""
    done = submit(cluster, tiny.parent, forked, str(tiny), "--test-only")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("cifar-dist: sbatch submitted no job")
    assert not (tiny.parent / "runs" / "tiny").exists()
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    for word in ("--usage", "--version", "-HV"):
        with pytest.raises(UserError, match=r"^sbatch submitted no job"):
            sbatch.submit(ROOT / "slurm" / "train.sbatch", [], Options.parse([word]))
