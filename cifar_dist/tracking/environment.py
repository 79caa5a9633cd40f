"""``environment.json``: versions, machine, processes and command of a run; never a secret."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from cifar_dist.cpu.load import usable_cores
from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.code_version import commit, shortened, versions
from cifar_dist.files.reading import read_json
from cifar_dist.launch.launched import is_continuation, machine_name
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.timeline import utc

_PACKAGES = ("cifar-dist", "torch", "torchvision", "accelerate", "deepspeed", "webdataset", "wandb", "numpy", "timm")
_SLURM: Final = """
    JOB_ID JOB_NAME JOB_PARTITION JOB_QOS JOB_NUM_NODES JOB_NODELIST JOB_CPUS_PER_NODE JOB_GPUS JOB_START_TIME
    JOB_END_TIME ARRAY_JOB_ID ARRAY_TASK_ID ARRAY_TASK_COUNT CLUSTER_NAME RESTART_COUNT SUBMIT_HOST SUBMIT_DIR STEP_ID
    STEP_NODELIST STEP_NUM_TASKS NNODES NODEID NODELIST NODENAME TOPOLOGY_ADDR NTASKS NPROCS NTASKS_PER_NODE PROCID
    LOCALID TASKS_PER_NODE CPUS_PER_TASK CPUS_ON_NODE CPUS_PER_GPU CPU_BIND CPU_BIND_LIST GPUS GPUS_ON_NODE
    GPUS_PER_NODE GPUS_PER_TASK GPU_BIND MEM_PER_CPU MEM_PER_GPU MEM_PER_NODE MEM_BIND DISTRIBUTION THREADS_PER_CORE
    HINT
""".split()
_LAUNCHER: Final = """
    RANK LOCAL_RANK GROUP_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE MASTER_ADDR MASTER_PORT
    TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS TORCHELASTIC_RUN_ID ACCELERATE_USE_CPU ACCELERATE_USE_DEEPSPEED
    ACCELERATE_USE_FSDP ACCELERATE_MIXED_PRECISION ACCELERATE_DEEPSPEED_ZERO_STAGE ACCELERATE_DYNAMO_BACKEND
    FSDP_SHARDING_STRATEGY
""".split()
_LIBRARIES: Final = """
    OMP_NUM_THREADS OMP_PROC_BIND OMP_PLACES OMP_WAIT_POLICY OMP_DYNAMIC OMP_SCHEDULE GOMP_SPINCOUNT GOMP_CPU_AFFINITY
    MKL_NUM_THREADS MKL_CBWR MKL_DYNAMIC MKL_ENABLE_INSTRUCTIONS KMP_AFFINITY KMP_BLOCKTIME DNNL_MAX_CPU_ISA
    ONEDNN_MAX_CPU_ISA ATEN_CPU_CAPABILITY CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_LAUNCH_BLOCKING CUDA_HOME
    CUBLAS_WORKSPACE_CONFIG NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE TORCH_CUDNN_V8_API_DISABLED TORCH_HOME
    TORCH_LOGS TORCH_COMPILE_DISABLE TORCHINDUCTOR_CACHE_DIR TORCH_DISTRIBUTED_DEBUG TORCH_CPP_LOG_LEVEL
    TORCH_NCCL_BLOCKING_WAIT TORCH_NCCL_ASYNC_ERROR_HANDLING TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC PYTORCH_CUDA_ALLOC_CONF
    PYTORCH_ALLOC_CONF THP_MEM_ALLOC_ENABLE GLOO_SOCKET_IFNAME TP_SOCKET_IFNAME NCCL_SOCKET_IFNAME NCCL_DEBUG
    NCCL_DEBUG_SUBSYS NCCL_DEBUG_FILE NCCL_IB_DISABLE NCCL_IB_HCA NCCL_IB_GID_INDEX NCCL_IB_TIMEOUT NCCL_IB_RETRY_CNT
    NCCL_IB_TC NCCL_P2P_DISABLE NCCL_P2P_LEVEL NCCL_SHM_DISABLE NCCL_NET NCCL_NET_GDR_LEVEL NCCL_ALGO NCCL_PROTO
    NCCL_BUFFSIZE NCCL_NTHREADS NCCL_MIN_NCHANNELS NCCL_MAX_NCHANNELS NCCL_NVLS_ENABLE NCCL_CUMEM_ENABLE NCCL_TOPO_FILE
    NCCL_ASYNC_ERROR_HANDLING NCCL_BLOCKING_WAIT NCCL_TIMEOUT NCCL_LAUNCH_MODE NCCL_CROSS_NIC WANDB_MODE
""".split()
RECORDED: Final = frozenset({*(f"SLURM_{name}" for name in _SLURM), *_LAUNCHER, *_LIBRARIES})
"""The environment variables that are recorded. A list of what is a secret would never be complete."""
# In the command: the user part of a URL (a password may contain an @), and NAME=value with a name that suggests one.
_USER_IN_URL = re.compile(r"(://)[^/\s]+@")
_SECRET_IN_TEXT = re.compile(
    r"(\w*(?:KEY|TOKEN|SECRET|PASS|PWD|PW\b|PRIVATE|JWT|CREDENTIAL|AUTH|SIGNATURE)\w*[=:])[^,;&\s]+", re.IGNORECASE
)
_FACTS = TypeAdapter(RunFacts)


def write_environment(path: Path, facts: RunFacts) -> None:
    """Write the ``environment.json`` of this process and its run to ``path``."""
    text = json.dumps({"written": utc(), "run": asdict(facts), **describe()}, indent=2)
    write_atomic(path, text + "\n")


def describe() -> dict[str, object]:
    """Describe the versions and the machine of this process, as JSON values."""
    return {
        "python": platform.python_version(),
        "versions": versions(_PACKAGES),
        "platform": platform.platform(),
        "host": machine_name(),
        "cpu": _cpu(),
        "cores": usable_cores(),
        "gpus": _gpus(),
        "command": [_masked(word) for word in sys.orig_argv],
        "folder": os.getcwd(),
        "commit": commit(),
        "variables": relevant(os.environ),
    }


def relevant(variables: Mapping[str, str]) -> dict[str, str]:
    """Select the environment variables of :data:`RECORDED`."""
    return {name: _masked(value) for name, value in sorted(variables.items()) if name in RECORDED}


def _masked(text: str) -> str:
    return _SECRET_IN_TEXT.sub(r"\1***", _USER_IN_URL.sub(r"\1***@", text))


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()


def _gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def read_facts(path: Path) -> RunFacts:
    """Read the facts in an ``environment.json``; those that are missing or damaged are empty."""
    run = read_json(path).get("run")
    known = {field.name for field in fields(RunFacts)}
    # Only these: an error of pydantic does not name another key that is not UTF-8.
    facts = {key: run[key] for key in run.keys() & known} if isinstance(run, dict) else {}
    try:
        return _FACTS.validate_python(facts)
    except ValidationError as error:
        damaged = {one["loc"][0] for one in error.errors()}
        return _FACTS.validate_python({key: facts[key] for key in facts.keys() - damaged})


def is_of_earlier_attempt(path: Path) -> bool:
    """Whether an earlier attempt of this job wrote an ``environment.json``, or an earlier task of its array.

    A chain of jobs of one run is an array. All ranks of a job find the same, until one of them writes the file.
    """
    then = read_variables(path)
    if then.get("SLURM_JOB_ID") == os.environ.get("SLURM_JOB_ID"):
        return is_continuation()
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return array is not None and then.get("SLURM_ARRAY_JOB_ID") == array


def read_variables(path: Path) -> Mapping[str, object]:
    """Read the environment variables in an ``environment.json``; empty if it is missing or damaged."""
    variables = read_json(path).get("variables")
    return variables if isinstance(variables, dict) else {}


def describe_numerics(device: str) -> dict[str, str]:
    """Describe by what this process rounds differently from others: versions, commit and, on a CPU, its name.

    Args:
        device: that it computes on, such as ``cpu``.
    """
    return _numerics({"versions": versions(("cifar-dist", "torch")), "commit": commit(), "cpu": _cpu()}, device)


def read_numerics(path: Path) -> dict[str, str]:
    """Read from an ``environment.json`` what :func:`describe_numerics` says of its process, as far as it is known."""
    return _numerics(read_json(path), read_facts(path).device)


def _numerics(description: Mapping[str, object], device: str) -> dict[str, str]:
    installed, checked_out = description.get("versions"), description.get("commit")
    known = installed if isinstance(installed, dict) else {}
    found = {
        "torch": known.get("torch"),
        "cifar-dist": known.get("cifar-dist"),
        "commit": shortened(checked_out) if isinstance(checked_out, str) else "",
        "cpu": description.get("cpu") if device == "cpu" else "",
    }
    return {key: value for key, value in found.items() if isinstance(value, str) and value}
