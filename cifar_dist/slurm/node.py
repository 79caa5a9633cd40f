"""One node's part of a job: its processes, and how they find those of the other nodes.

``srun`` runs it on every node. The differences between nodes are in the environment that Slurm sets there; the batch
script sees only that of the first node.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cifar_dist.errors import UserError
from cifar_dist.launch.agent import run_launcher
from cifar_dist.launch.configs import find_config
from cifar_dist.launch.gpu_devices import count_gpus
from cifar_dist.launch.joining import JOB_PORTS
from cifar_dist.launch.launched import machine_name
from cifar_dist.launch.typed_command import SLURM_CONFIG, SLURM_PROCESSES, VARIABLE
from cifar_dist.runs.launched_run import LaunchedRun
from cifar_dist.slurm.job_output import say

MIN_NODES = "CIFAR_DIST_MIN_NODES"
"""Environment variable of a job that continues on the nodes left when others are lost: their least number."""

_GPUS = "SLURM_GPUS_ON_NODE"
_LOADING_SECONDS = 30  # by which one node of a job may load its packages later than another, as from a busy file server


@dataclass(frozen=True)
class Node:
    """A node of the job.

    Attributes:
        index: number of the node, from 0.
        nodes: number of nodes in the job.
        processes: number of processes on this node, the same on each.
        config: config of ``accelerate launch``: a name in ``launch/`` or the path of a ``.yaml``.
        host: host of rank 0.
        port: port for the rendezvous on that host.
        name: what the other nodes call this one.
        min_nodes: on as few nodes the job continues when others are lost; 0 if it ends then.
    """

    index: int
    nodes: int
    processes: int
    config: str
    host: str
    port: int
    name: str = ""
    min_nodes: int = 0

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> Node:
        """Read the node from the variables of ``srun`` and ``CIFAR_DIST_*``.

        Raises:
            UserError: ``CIFAR_DIST_PROCESSES_PER_NODE`` or ``CIFAR_DIST_MIN_NODES`` is not a positive integer.
        """
        return cls(
            index=int(variables["SLURM_NODEID"]),
            nodes=int(variables["SLURM_NNODES"]),
            processes=positive(variables, SLURM_PROCESSES) or int(variables.get(_GPUS) or 1),
            config=launch_config(variables),
            host=first_host(variables["SLURM_JOB_NODELIST"]),
            # Jobs that share a host use different ports.
            port=JOB_PORTS[int(variables["SLURM_JOB_ID"]) % len(JOB_PORTS)],
            name=variables.get("SLURMD_NODENAME", ""),
            min_nodes=positive(variables, MIN_NODES),
        )

    @property
    def options(self) -> list[str]:
        """Return the options of ``accelerate launch`` on this node, in addition to its config."""
        if self.nodes > 1 and self.min_nodes:
            return [
                f"--num_processes={self.processes}",
                f"--nnodes={min(self.min_nodes, self.nodes)}:{self.nodes}",
                f"--max_restarts={self.nodes}",
                f"--rdzv_endpoint={self.host}:{self.port}",
                f"--rdzv_conf=is_host={self.index == 0},last_call_timeout={_LOADING_SECONDS}",
                f"--local_addr={self.name}",
            ]
        options = [f"--num_processes={self.nodes * self.processes}"]
        if self.nodes > 1:
            options += [
                f"--num_machines={self.nodes}",
                f"--machine_rank={self.index}",
                f"--main_process_ip={self.host}",
                f"--main_process_port={self.port}",
                "--deepspeed_multinode_launcher=standard",  # DeepSpeed's default starts the other nodes over ssh
            ]
        return options


def launch_config(variables: Mapping[str, str]) -> str:
    """Return the name in ``launch/`` or the path of the config that a node uses."""
    return variables.get(SLURM_CONFIG) or ("ddp" if variables.get(_GPUS) else "cpu")


def positive(variables: Mapping[str, str], name: str) -> int:
    """Return the positive integer that a variable of a site says; 0 if it is not set or empty.

    Raises:
        UserError: it says something else.
    """
    text = variables.get(name, "")
    if text and (not text.isdecimal() or int(text) < 1):
        raise UserError(f"{name} is {text!r}; set it to an integer of at least 1")
    return int(text or 0)


def first_host(nodelist: str) -> str:
    """Return the first host of a Slurm host list: ``node1`` of ``node[1-4,7],gpu[01-02]``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    assert first is not None  # the expression matches the empty string
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])


def describe_unused_gpus(variables: Mapping[str, str]) -> str:
    """Return a warning where the node has GPUs that the job neither asked for nor declined; empty elsewhere."""
    gpus = count_gpus()
    if not gpus or variables.get(_GPUS) or variables.get(SLURM_CONFIG):
        return ""
    number = "a GPU" if gpus == 1 else f"{gpus} GPUs"
    return (
        f"{machine_name()} has {number} that the job did not ask for, so it trains on the CPU; use sbatch "
        f"--gres=gpu:{gpus}, or, where Slurm does not manage GPUs, {SLURM_CONFIG}=ddp {SLURM_PROCESSES}={gpus}; "
        f"{SLURM_CONFIG}=cpu trains on the CPU without this line"
    )


def run_node(words: Sequence[str], variables: Mapping[str, str]) -> int:
    """Perform a collective verb on this node; return its exit code.

    Args:
        words: a collective verb and its arguments.
        variables: the environment of this node.
    """
    node = Node.from_environment(variables)
    config = find_config(node.config)
    place = f"machine {node.index} of {node.nodes} is {machine_name()}"
    if warning := describe_unused_gpus(variables):
        say(warning)
    print(f"{place}, processes on it: {node.processes}, {config}", flush=True)
    os.environ[VARIABLE] = ""  # the batch script requeues the job, or says how to resume
    return run_launcher(config, node.options, LaunchedRun(words))
