"""What a launcher or DeepSpeed's file asks for, and the recipe decides, is refused and never ignored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.running import TRAIN, spawn

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.distributed.launcher_settings import check_launcher_settings
from cifar_dist.errors import UserError


def assert_refused(config: Config, precision: str, says: str) -> None:
    """Assert that the check refuses a run with a message that has this text, or accepts it if that is empty."""
    try:
        check_launcher_settings(config, precision)
        said = ""
    except UserError as error:
        said = str(error)
    assert says in said
    assert bool(said) == bool(says), said


@pytest.mark.parametrize(
    ("variables", "settings", "says"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, [], "mixed_precision = fp16 has no effect"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, [], "use --train.precision fp16"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, [], ""),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, ["--train.precision", "bf16"], ""),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, [], "dynamo_backend = inductor has no effect"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, ["--train.compile", "true"], ""),
        ({"ACCELERATE_DYNAMO_BACKEND": "EAGER"}, ["--train.compile", "true"], "dynamo_backend = eager has no effect"),
        ({"ACCELERATE_DYNAMO_BACKEND": "NO"}, [], ""),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, [], "use --train.accumulate 4"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, ["--train.accumulate", "4"], ""),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, ["--train.accumulate", "4"], ""),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, [], "use --optim.clip_norm 0.5"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.50"}, ["--optim.clip_norm", "0.5"], ""),
        (
            {"FSDP_OFFLOAD_PARAMS": "true", "ACCELERATE_USE_FSDP": "true"},
            [],
            "fsdp_offload_params = true has no effect",
        ),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false", "ACCELERATE_USE_FSDP": "true"}, [], "fsdp_reshard_after_forward"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, [], ""),
    ],
)
def test_a_request_that_the_run_does_not_meet_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], settings: list[str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = recipe.load("demo", settings)
    precision = config.train.precision if config.train.precision != "auto" else "no"
    assert_refused(config, precision, says)


ZERO = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (ZERO, ""),
        ({**ZERO, "bf16": {"enabled": False}, "train_batch_size": "auto", "gradient_clipping": "auto"}, ""),
        ({**ZERO, "train_batch_size": 64, "gradient_accumulation_steps": 1}, ""),
        ({**ZERO, "train_batch_size": 16}, "train_batch_size = 16 has no effect"),
        ({**ZERO, "optimizer": {"type": "Adam"}}, 'optimizer = {"type": "Adam"} has no effect'),
        ({**ZERO, "scheduler": {"type": "WarmupLR"}}, "remove it and use --schedule.name"),
        ({**ZERO, "bf16": {"enabled": True}}, "remove it and use --train.precision"),
        ({**ZERO, "gradient_clipping": 0.1}, "remove it and use --optim.clip_norm 0.1"),
        ({"bf16": {"enabled": False}}, "ds.json has no object zero_optimization; correct it, or use"),
        ([], "ds.json has no object zero_optimization"),
        ('{"zero_optimization": {', "ds.json cannot be read: Expecting property name"),
        (None, "ds.json cannot be read: No such file or directory; correct it, or use launch/zero2.yaml"),
    ],
)
def test_deepspeeds_file_says_only_how_it_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, says: str
) -> None:
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    assert_refused(recipe.load("demo"), "no", says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}}', "ds.json: optimizer = "),
        ("{", "ds.json cannot be read: Expecting property name"),
    ],
)
def test_all_ranks_refuse_it_in_one_line(tiny: Path, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "ds.json").write_text(content)
    env = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "ds.json")}
    done = spawn([TRAIN, str(tiny)], 2, env=env)
    assert [one.returncode for one in done] == [2, 2], done[0].stderr
    (line,) = [line for one in done for line in one.stderr.splitlines() if line.startswith("cifar-dist: ")]
    assert says in line
    assert "Traceback" not in done[0].stderr + done[1].stderr
    assert not (tmp_path / "runs").exists()
