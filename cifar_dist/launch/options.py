"""What ``accelerate launch`` is asked for: its options and its config, checked before it starts a process."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_dist.errors import UserError, first_line
from cifar_dist.launch.typed_command import command_with_ddp

_ONE_PROCESS = ("NO", "MULTI_CPU")
_KINDS = (*_ONE_PROCESS, "MULTI_GPU", "DEEPSPEED", "FSDP")
_EACH = ("auto", "gpu", "cpu")  # one process for each GPU or core
_LAST_PORT = 65_535
_MOST = 100_000  # processes or machines: the launcher would take all memory for more
_DEFAULT_PORT = 29_500  # of torchrun


@dataclass(frozen=True)
class LaunchRequest:
    """The processes that a launch is asked for.

    Attributes:
        config: the config of ``accelerate launch``.
        kind: its ``distributed_type``.
        processes: over all machines, or on each of an elastic job; None for one for each GPU or core.
        machines: how many there are; 1 for an elastic job, which counts its own.
        machine_rank: the number of this one.
        host, port: where the machines meet; an empty host where DeepSpeed's own launcher starts the others.
        endpoint: where the machines of an elastic job meet, as HOST:PORT; empty for another job.
        use_cpu: whether the config says that no GPU is used.
        gpu_ids: the GPUs that the processes see, as ``CUDA_VISIBLE_DEVICES`` names them; empty for all of this process.
    """

    config: Path
    kind: str
    processes: int | None
    machines: int
    machine_rank: int
    host: str
    port: int
    endpoint: str = ""
    use_cpu: bool = False
    gpu_ids: str = ""


def read_request(config: Path, options: Sequence[str]) -> LaunchRequest:
    """Read what is asked for; ``options`` are of ``accelerate launch``, each ``--NAME=VALUE``, and override ``config``.

    Raises:
        UserError: the config is damaged, a number is out of range, or fewer processes would start than are asked for.
    """
    values = _Values(config, read_config(config), _named(options))
    kind = "NO" if values.get("distributed_type") is False else str(values.get("distributed_type"))  # YAML's bare NO
    if kind not in _KINDS:
        raise UserError(f"{config}: distributed_type {kind} is not supported; use one of {', '.join(_KINDS)}")
    elastic = values.get("nnodes")
    machines = 1 if elastic is not None else values.integer("num_machines", least=1, example=2) or 1
    processes = values.integer("num_processes", least=1, example=2, words=_EACH if machines == 1 else ())
    request = LaunchRequest(
        config,
        kind,
        processes,
        machines,
        values.integer("machine_rank", least=0, most=machines - 1, example=0) or 0,
        _without_brackets(str(values.get("main_process_ip") or "")),
        values.integer("main_process_port", least=0, most=_LAST_PORT, example=_DEFAULT_PORT) or _DEFAULT_PORT,
        "" if elastic is None else _endpoint(str(elastic), str(values.get("rdzv_endpoint") or "")),
        values.get("use_cpu") is True,
        _gpu_ids(config, values.get("gpu_ids")),
    )
    _check_one_process(request)
    _check_machines(request, starts_others=_starts_others(kind, values))
    return request


class _Values:
    """The values of a config, overridden by those of options."""

    def __init__(self, config: Path, file: Mapping[str, object], options: Mapping[str, str]) -> None:
        self._config, self._file, self._options = config, file, options

    def get(self, name: str) -> object:
        return self._options.get(name, self._file.get(name))

    def integer(
        self, name: str, *, least: int, most: int = _MOST, example: int, words: tuple[str, ...] = ()
    ) -> int | None:
        """Return an integer of this range; None where the value is missing or one of these ``words``."""
        value = self.get(name)
        if value is None or value in words:
            return None
        text = str(value)
        if text.isdecimal() and len(text) < 100 and least <= int(text) <= most:
            return int(text)
        where = f"--{name}={value}" if name in self._options else f"{self._config}: {name}: {value}"
        raise UserError(f"{where} is not an integer from {least} to {most}; use for example --{name}={example}")


def _gpu_ids(config: Path, value: object) -> str:
    """Return the GPUs of ``gpu_ids`` after a check; empty for all."""
    if not isinstance(value, str | None):  # a number or a list of YAML, on which accelerate launch breaks
        raise UserError(f'{config}: gpu_ids: {value} is not text; write for example gpu_ids: "0,1"')
    return "" if value in (None, "all") else value


def _named(options: Sequence[str]) -> dict[str, str]:
    split = (option.lstrip("-").partition("=") for option in options)
    return {name.replace("-", "_"): value for name, _, value in split}


def read_config(path: Path) -> dict[str, object]:
    """Read a config of ``accelerate launch``; the keys of its ``deepspeed_config`` are beside its own.

    Raises:
        UserError: it cannot be read, or is not such a config.
    """
    import yaml

    remedy = "start from a file in launch/, or write one with: accelerate config"
    try:
        with open(path, encoding="utf-8") as file:
            found: object = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else _yaml_problem(error)
        raise UserError(f"the launch config {path} cannot be read: {reason}; {remedy}") from None
    if not isinstance(found, dict) or "distributed_type" not in found:
        raise UserError(f"{path} is not a config of accelerate launch: it has no distributed_type; {remedy}")
    nested = found.get("deepspeed_config")
    return {**(nested if isinstance(nested, dict) else {}), **found}


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}" if mark is not None else ""
    return f"{getattr(error, 'problem', None) or first_line(error)}{where}"


def _endpoint(nnodes: str, endpoint: str) -> str:
    """Return ``endpoint`` after a check of the options of an elastic job."""
    least, _, most = nnodes.partition(":")
    if not re.fullmatch(r"[1-9]\d*(:\d+)?", nnodes) or int(most or least) < int(least):
        raise UserError(f"--nnodes={nnodes} is not MIN:MAX, the numbers of machines; use for example --nnodes=1:4")
    if not endpoint:
        raise UserError(
            f"--nnodes={nnodes} needs a machine where the others find this job; "
            "add --rdzv_endpoint=HOST:PORT, the same on all of them"
        )
    host, port = split_endpoint(endpoint)
    if not host or not port.isdecimal() or not 0 < int(port) <= _LAST_PORT:
        raise UserError(f"--rdzv_endpoint={endpoint} is not HOST:PORT; use for example --rdzv_endpoint=node1:29400")
    return endpoint


def split_endpoint(endpoint: str) -> tuple[str, str]:
    """Split HOST:PORT into the host as sockets take it, an IPv6 address without brackets, and the port."""
    host, _, port = endpoint.rpartition(":")
    return _without_brackets(host), port


def _without_brackets(host: str) -> str:
    return re.sub(r"^\[(.*)\]$", r"\1", host)


def _check_one_process(request: LaunchRequest) -> None:
    """Refuse a config that starts one process on each machine, which would train alone, if more are asked for."""
    if request.kind not in _ONE_PROCESS:
        return
    several = f"the {request.processes} asked for" if (request.processes or 1) > 1 else ""
    if request.endpoint or request.machines > 1:
        several = "one job of several machines"
    if several:
        starts = f"{request.config} starts one process (distributed_type {request.kind})"
        raise UserError(f"{starts}, not {several}; {command_with_ddp()}")


def _starts_others(kind: str, values: _Values) -> bool:
    """Whether DeepSpeed's launcher starts the processes of the other machines, over ssh or MPI."""
    return kind == "DEEPSPEED" and values.get("deepspeed_multinode_launcher") != "standard"


def _check_machines(request: LaunchRequest, *, starts_others: bool) -> None:
    if request.machines == 1:
        return
    if not request.host and not starts_others:
        raise UserError(
            f"{request.machines} machines need to know where they meet; add --main_process_ip=HOST "
            f"--main_process_port={request.port}, the same on all, and --machine_rank=I, from 0"
        )
    if request.processes is None or request.processes % request.machines:
        each = max(1, (request.processes or 0) // request.machines)
        raise UserError(
            f"num_processes is {request.processes or 'not set'}, and {request.machines} machines start equally many; "
            f"use for example --num_processes={each * request.machines}, which counts those of all machines"
        )
