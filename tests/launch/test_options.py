"""What a launch is asked for is read before it starts a process, and refused if it cannot be."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from support.running import ROOT

from cifar_dist.errors import UserError
from cifar_dist.launch.options import LaunchRequest, read_request, split_endpoint
from cifar_dist.verbs import launch

CPU, SINGLE, ZERO = (ROOT / "launch" / f"{name}.yaml" for name in ("cpu", "single", "zero2"))
MACHINES = ["--num_machines=2", "--main_process_ip=node1"]


@pytest.mark.parametrize(
    ("config", "options", "processes", "machines", "port"),
    [
        (CPU, [], 2, 1, 29500),
        (CPU, ["--num-processes=3", "--main_process_port=1234"], 3, 1, 1234),
        (CPU, [*MACHINES, "--machine_rank=1", "--num_processes=4"], 4, 2, 29500),
        (CPU, ["--nnodes=1:2", "--rdzv_endpoint=node1:29400"], 2, 1, 29500),
        (CPU, ["--nnodes=2:2", "--rdzv_endpoint=node1:65535"], 2, 1, 29500),
        (CPU, ["--nnodes=2", "--rdzv_endpoint=node1:29400"], 2, 1, 29500),
        (ZERO, [], None, 1, 29500),
        (ZERO, ["--num_machines=2", "--num_processes=2"], 2, 2, 29500),
        (SINGLE, ["--num_processes=1"], 1, 1, 29500),
    ],
)
def test_options_override_the_config(
    config: Path, options: list[str], processes: int | None, machines: int, port: int
) -> None:
    found = read_request(config, options)
    assert (found.processes, found.machines, found.port) == (processes, machines, port)


def test_an_ipv6_address_may_be_in_brackets() -> None:
    options = ["--num_machines=2", "--num_processes=2", "--main_process_ip=[fd00::1]"]
    assert read_request(CPU, options).host == "fd00::1"
    assert split_endpoint("[fd00::1]:29400") == split_endpoint("fd00::1:29400") == ("fd00::1", "29400")


def test_a_config_that_says_use_cpu_is_asked_for_no_gpu(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("distributed_type: MULTI_GPU\nuse_cpu: true\n")
    assert read_request(config, []).use_cpu
    assert read_request(CPU, []).use_cpu
    assert not read_request(ZERO, []).use_cpu


def test_the_name_no_of_yaml_is_one_process(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("distributed_type: NO")
    assert read_request(config, []) == LaunchRequest(config, "NO", None, 1, 0, "", 29500)


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (SINGLE, ["--num_processes=2"], "(distributed_type NO), not the 2 asked for; use: cifar-dist launch"),
        (SINGLE, [*MACHINES, "--num_processes=2"], "starts one process (distributed_type NO), not one job of several"),
        (SINGLE, ["--nnodes=1:2", "--rdzv_endpoint=a:1"], "starts one process (distributed_type NO), not one job of"),
        (CPU, ["--num_processes=0"], "--num_processes=0 is not an integer from 1 to 100000; use for example"),
        (CPU, ["--num_processes=two"], "--num_processes=two is not an integer from 1"),
        (CPU, [f"--num_processes={10**20}"], "is not an integer from 1 to 100000"),
        (CPU, [f"--num_processes={'9' * 5000}"], "is not an integer from 1 to 100000"),
        (CPU, ["--main_process_port=99999"], "is not an integer from 0 to 65535; use for example --main_process_port="),
        (CPU, [*MACHINES, "--machine_rank=2"], "--machine_rank=2 is not an integer from 0 to 1"),
        (CPU, ["--num_machines=2"], "2 machines need to know where they meet; add --main_process_ip=HOST"),
        (
            CPU,
            [*MACHINES, "--num_processes=3"],
            "num_processes is 3, and 2 machines start equally many; use for example --num_processes=2",
        ),
        (CPU, ["--nnodes=1:2"], "--nnodes=1:2 needs a machine where the others find this job; add --rdzv_endpoint="),
        (CPU, ["--nnodes=2:1", "--rdzv_endpoint=a:1"], "--nnodes=2:1 is not MIN:MAX"),
        (CPU, ["--nnodes=abc", "--rdzv_endpoint=a:1"], "--nnodes=abc is not MIN:MAX"),
        (CPU, ["--nnodes=1:2", "--rdzv_endpoint=node1"], "--rdzv_endpoint=node1 is not HOST:PORT"),
        (CPU, ["--nnodes=1:2", "--rdzv_endpoint=:29400"], "--rdzv_endpoint=:29400 is not HOST:PORT"),
        (CPU, ["--nnodes=1:2", "--rdzv_endpoint=[]:29400"], "--rdzv_endpoint=[]:29400 is not HOST:PORT"),
        (CPU, ["--nnodes=1:2", "--rdzv_endpoint=node1:x"], "--rdzv_endpoint=node1:x is not HOST:PORT"),
        (CPU, ["--nnodes=1:2", "--rdzv_endpoint=node1:0"], "--rdzv_endpoint=node1:0 is not HOST:PORT"),
        (CPU, ["--nnodes=1:2", "--rdzv_endpoint=node1:65536"], "--rdzv_endpoint=node1:65536 is not HOST:PORT"),
    ],
)
def test_options_that_cannot_be_launched_are_refused(config: Path, options: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        read_request(config, options)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", [["cpu", "--help"], ["cpu", "--num_processes=2", "-h"]])
def test_help_after_the_config_is_that_of_launch(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.run(argparse.Namespace(words=words)) == 0
    assert capsys.readouterr().out.startswith(launch.USAGE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "",
            "mine.yaml is not a config of accelerate launch: it has no distributed_type; start from",
        ),
        ("- a\n- b", "mine.yaml is not a config of accelerate launch"),
        ("num_processes: [2\n", "cannot be read: expected ',' or ']', but got '<stream end>' in line 2; start from"),
        ("distributed_type: MULTI_CPU\nnum_processes: 2", "starts one process (distributed_type MULTI_CPU), not the 2"),
        ("distributed_type: TPU", "distributed_type TPU is not supported; use one of NO, MULTI_CPU, MULTI_GPU"),
        ("distributed_type: MULTI_GPU\nnum_processes: two", "mine.yaml: num_processes: two is not an integer from"),
        ("distributed_type: MULTI_GPU\nmachine_rank: x\nnum_machines: 2", "mine.yaml: machine_rank: x is not an"),
        ("distributed_type: NO\ngpu_ids: 0", 'mine.yaml: gpu_ids: 0 is not text; write for example gpu_ids: "0,1"'),
    ],
)
def test_configs_that_cannot_be_launched_are_refused(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(text)
    with pytest.raises(UserError) as error:
        read_request(config, [])
    assert says in str(error.value)
    assert "\n" not in str(error.value)
