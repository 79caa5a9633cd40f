from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.recorded import FACTS

from cifar_dist.tracking.environment import (
    RECORDED,
    describe_numerics,
    read_facts,
    read_numerics,
    relevant,
    write_environment,
)
from cifar_dist.tracking.facts import RunFacts

CANARY = "canary-4711"


def test_the_file_tells_versions_machine_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("MASTER_ADDR", "node7")
    monkeypatch.setenv("HOME_PAGE", "irrelevant")
    write_environment(tmp_path / "environment.json", FACTS)
    written = json.loads((tmp_path / "environment.json").read_text())
    assert written["run"]["processes"] == 2
    assert written["run"]["image_shape"] == [8, 8, 1]
    assert {"torch", "accelerate", "numpy", "timm"} <= written["versions"].keys()
    assert written["python"].split(".")[0] == "3"
    assert written["command"] == sys.orig_argv
    assert written["variables"]["SLURM_JOB_ID"] == "42"
    assert written["variables"]["MASTER_ADDR"] == "node7"
    assert "HOME_PAGE" not in written["variables"]
    assert written["cores"] >= 1


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"threads": 2**16},
        {"steps_per_epoch": -1, "image_shape": [8, 8]},
        {"of a later version": 1, "\ud800": 2},
    ],
)
def test_facts_that_are_missing_or_damaged_are_empty_and_the_others_are_read(
    tmp_path: Path, damage: dict[str, object]
) -> None:
    path = tmp_path / "environment.json"
    write_environment(path, FACTS)
    assert read_facts(path) == FACTS
    path.write_text(json.dumps({"run": {"model": "net", "processes": 2, **damage}}))
    assert read_facts(path) == RunFacts(model="net", processes=2)
    for content in ("{ torn", "[]", "{}", '{"run": 1}'):
        path.write_text(content)
        assert read_facts(path) == RunFacts()


@pytest.mark.parametrize("damage", ["{ torn", "[]", "{}", '{"versions": 1, "commit": 2, "cpu": [], "run": 3}'])
def test_what_rounds_differently_is_read_as_far_as_it_is_known(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "environment.json"
    write_environment(path, replace(FACTS, device="cpu"))
    assert read_numerics(path) == describe_numerics("cpu")
    assert {"torch", "cifar-dist", "cpu"} <= read_numerics(path).keys()
    write_environment(path, replace(FACTS, device="cuda (NVIDIA A100)"))
    assert "cpu" not in read_numerics(path), "which computes nothing there"
    path.write_text(damage)
    assert read_numerics(path) == {}


def test_no_secret_reaches_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "WANDB_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "SLURM_JWT",
        "NCCL_AUTH_TOKEN",
        "TORCH_PASSWORD",
        "SLURM_DB_PWD",
        "ACCELERATE_PW",
        "NCCL_PRIVATE",
    ):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("SLURM_EXPORT_ENV", f"ALL,WANDB_API_KEY={CANARY},DB_PWD={CANARY}")
    monkeypatch.setenv("SLURM_JOB_COMMENT", f"password: {CANARY}")
    monkeypatch.setenv("TORCH_HOME", f"s3://me:{CANARY}@host/models")
    urls = [
        f"--data.path=https://me:{CANARY}@host/a",
        f"https://me:p@{CANARY}@host/a",
        f"s3://b/a?X-Signature={CANARY}&v=1",
        f"--db.pwd={CANARY}",
    ]
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", *urls])
    write_environment(tmp_path / "environment.json", FACTS)
    text = (tmp_path / "environment.json").read_text()
    assert CANARY not in text
    written = json.loads(text)
    assert written["variables"]["TORCH_HOME"] == "s3://***@host/models"
    assert written["command"][2:] == [
        "--data.path=https://***@host/a",
        "https://***@host/a",
        "s3://b/a?X-Signature=***&v=1",
        "--db.pwd=***",
    ]


@settings(deadline=None, max_examples=100)
@given(
    st.dictionaries(st.text(max_size=20) | st.sampled_from(["SLURM_JOB_COMMENT", "SLURM_CONF"]), st.text(max_size=20))
)
def test_only_listed_variables_are_recorded(variables: dict[str, str]) -> None:
    assert relevant({**variables, "OMP_NUM_THREADS": "1"}).keys() <= RECORDED
    assert relevant({**variables, "OMP_NUM_THREADS": "1"})["OMP_NUM_THREADS"] == "1"
    assert relevant({"PATH": "/bin", "MY_RANK": "1", "XSLURM_ID": "1"}) == {}
