"""One node's part of a job: which processes run on it, and how they find those of the other nodes.

``srun`` starts it on every node. What differs between nodes is in the environment that Slurm sets there; the batch
script sees that of the first node only.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE, EXIT_REQUEUE
from cifar_dist.launch.agent import run_launcher
from cifar_dist.launch.configs import find_config

_FIRST_PORT, _PORTS = 20000, 12000  # below 32768, from where on Linux takes ports for outgoing connections


@dataclass(frozen=True)
class Node:
    """A node's place in the job.

    Attributes:
        index: of the node, from 0.
        nodes: in the job.
        processes: on this node; the same number on each.
        config: of ``accelerate launch``: a name in ``launch/`` or the path of a ``.yaml``.
        host: where rank 0 runs.
        port: on which the nodes meet.
    """

    index: int
    nodes: int
    processes: int
    config: str
    host: str
    port: int

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> Node:
        """Read the place from the variables of ``srun`` and ``CIFAR_DIST_*``.

        Raises:
            UserError: ``CIFAR_DIST_PROCESSES_PER_NODE`` is not a positive integer.
        """
        gpus = variables.get("SLURM_GPUS_ON_NODE", "")
        processes = variables.get("CIFAR_DIST_PROCESSES_PER_NODE") or gpus or "1"
        if not processes.isdecimal() or int(processes) < 1:
            raise UserError(f"CIFAR_DIST_PROCESSES_PER_NODE is {processes!r}; set it to an integer of at least 1")
        return cls(
            index=int(variables["SLURM_NODEID"]),
            nodes=int(variables["SLURM_NNODES"]),
            processes=int(processes),
            config=variables.get("CIFAR_DIST_LAUNCH") or ("ddp" if gpus else "cpu"),
            host=first_host(variables["SLURM_JOB_NODELIST"]),
            port=_FIRST_PORT + int(variables["SLURM_JOB_ID"]) % _PORTS,  # jobs that share a host differ in it
        )

    @property
    def options(self) -> list[str]:
        """What ``accelerate launch`` is told on this node, beside its config."""
        options = [f"--num_processes={self.nodes * self.processes}"]
        if self.nodes > 1:
            options += [
                f"--num_machines={self.nodes}",
                f"--machine_rank={self.index}",
                f"--main_process_ip={self.host}",
                f"--main_process_port={self.port}",
                "--deepspeed_multinode_launcher=standard",  # DeepSpeed's own starts the other nodes over ssh
            ]
        return options


def first_host(nodelist: str) -> str:
    """The first host of a Slurm host list: ``node1`` of ``node[1-4,7],gpu[01-02]``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    assert first is not None  # the expression matches the empty string
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])


def run_node(words: Sequence[str], variables: Mapping[str, str]) -> int:
    """Train on this node; returns the exit code for ``srun``.

    All nodes agree on 75, stopped on request. ``srun`` would take it for a failure and end the nodes that need a
    moment longer, so it is reported as 0; that the run is not finished is in its folder.

    Args:
        words: a recipe and its settings.
        variables: the environment of this node.
    """
    node = Node.from_environment(variables)
    config = find_config(node.config)
    shown = node.config if node.config.endswith(".yaml") else f"launch/{node.config}.yaml"
    place = f"machine {node.index} of {node.nodes} is {socket.gethostname()}"
    print(f"{place}, processes on it: {node.processes}, {shown}", flush=True)
    code = run_launcher(config, node.options, ["train", *words])
    return EXIT_DONE if code == EXIT_REQUEUE else code
