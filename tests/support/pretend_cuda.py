"""A pretend CUDA device: tensors that claim to be on ``cuda:0``, keep their values on the CPU, and count.

Counted are kernel launches and the waits of the host for the device, by line of the library: copies that block, values
that the host reads, and shapes that depend on values. One call is one kernel, except for those of ``_KERNELS``, and
lists of tensors (fused and foreach updates) take one for each 36. Kernels of the backward pass have no line.

:func:`pretend` changes torch for the rest of the process, so call it in one that ends, such as a fork.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

CUDA = torch.device("cuda", 0)
_STAGED_AT_ONCE = 1 << 16  # bytes that CUDA accepts from any memory without a wait

_READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "bincount"}
_KERNELS = {  # of one call, read off torch's sources; 1 for those that are not named
    **dict.fromkeys(["native_batch_norm", "_batch_norm_with_update", "batch_norm_backward", "bincount"], 3),
    **dict.fromkeys(["native_batch_norm_backward", "_foreach_norm"], 3),
    "convolution_backward": 2,
    "sort": 6,
    "argsort": 6,
    "_linalg_solve_ex": 8,
    **dict.fromkeys(
        ["empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "is_pinned", "_unsafe_view"], 0
    ),
}


class Counts:
    """The counts since they were last cleared.

    Attributes:
        launches, waits: by ``file.py:line`` of the library; ``backward`` for a pass that autograd runs.
    """

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def clear(self) -> None:
        self.launches.clear()
        self.waits.clear()

    def of(self, *rooms: str) -> int:
        """Count the launches by lines of files whose path in the library begins with one of ``rooms``."""
        return sum(count for line, count in self.launches.items() if line.startswith(rooms))


counts = Counts()


class OnDevice(torch.Tensor):
    """A tensor on the pretend device."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype
        )
        made.on_host = inner
        return made

    on_host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        return _dispatch(func, args, kwargs or {})

    def cpu(self, *_: object, **__: object) -> Tensor:
        counts.waits[_line()] += 1
        return self.on_host.detach().clone()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        named = kwargs.pop("device", None)
        given = [*args, *([named] if named is not None else [])]
        kwargs.pop("non_blocking", None)
        for value in given:
            if isinstance(value, Tensor):
                given += [value.device, value.dtype]
        dtypes = [value for value in given if isinstance(value, torch.dtype)]
        places = [torch.device(value).type for value in given if isinstance(value, str | torch.device)]
        convert: Callable[..., Tensor] = torch.Tensor.to
        if "cpu" in places:
            return convert(self.cpu(), *dtypes, **kwargs)
        return convert(self, *dtypes, **kwargs) if dtypes or kwargs else self

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def record_stream(self, s: object) -> None:
        assert isinstance(s, _Stream)

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert a tensor on {CUDA} to numpy (force={force})")


class Device(TorchDispatchMode):
    """Within it, tensors created on ``cuda`` are on the pretend device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> object:
    name = func._schema.name.split("::")[-1]
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    on_device = any(isinstance(value, OnDevice) for value in tensors)
    target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    is_pinned = kwargs.pop("pin_memory", False)
    if not on_device and target != "cuda":
        result = func(*args, **kwargs)
        if is_pinned:
            result.is_pretend_pinned = True
        return result
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    _count(name, func, args, kwargs, tensors)
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if name == "copy_":
        return args[0]
    if name == "_local_scalar_dense":
        return result
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_outer, result))


def _count(name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any], tensors: Sequence[Tensor]) -> None:
    line = _line()
    sides = {isinstance(value, OnDevice) for value in tensors if value.dim() or name in ("copy_", "_to_copy")}
    if name in ("copy_", "_to_copy") and (len(sides) == 2 or sides == {False}):
        asks_not_to = args[2] if args[2:] else kwargs.get("non_blocking", False)
        counts.waits[line] += int(not asks_not_to or any(map(_is_staged, tensors)))
    elif len(sides) == 2:  # a host tensor as an index is copied first; anything else is an error
        assert name in ("index", "index_put_", "_index_put_impl_", "index_put"), (
            f"{func} on two devices at {line}: {[(type(t).__name__, t.shape) for t in tensors]}"
        )
        counts.waits[line] += 1
    elif name in _READS:
        counts.waits[line] += 2 if name == "bincount" else 1
    elif name.startswith("index") and any(v.dtype is torch.bool for v in tree_iter(args[1]) if isinstance(v, Tensor)):
        counts.waits[line] += 1
    lists = name.startswith(("_foreach", "_fused"))
    if not func.is_view:
        counts.launches[line] += _KERNELS.get(name, 1) * (-(-len(args[0]) // 36) if lists else 1)


def _is_staged(tensor: Tensor) -> bool:
    """Whether CUDA copies it through memory of its own, which may wait: a large one that is not pinned."""
    is_large = not isinstance(tensor, OnDevice) and tensor.nbytes > _STAGED_AT_ONCE
    return is_large and not getattr(tensor, "is_pretend_pinned", False)


def _inner(value: object) -> object:
    return value.on_host if isinstance(value, OnDevice) else value


def _outer(value: object) -> object:
    return OnDevice(value) if isinstance(value, Tensor) and not isinstance(value, OnDevice) else value


def _line() -> str:
    """Return the line of the library that is running."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        _, found, file = frame.f_code.co_filename.rpartition("/cifar_dist/")
        if found:
            return f"{file}:{frame.f_lineno}"
        if frame.f_code.co_name == "_engine_run_backward":
            return "backward"
        frame = frame.f_back
    return "elsewhere"


def _is_bf16_supported(including_emulation: bool = True) -> bool:
    return True


def pretend() -> Device:
    """Make torch accept the device; enter the result as a context manager."""
    torch._C._ensureCUDADeviceGuardSet()
    torch.autograd.set_multithreading_enabled(False)
    torch.cuda.Event = _Event  # type: ignore[misc,assignment]
    torch.cuda.Stream = torch.cuda.stream = _Stream  # type: ignore[misc,assignment]
    torch.cuda.current_stream = lambda device=None: _Stream.entered[-1]  # type: ignore[assignment,return-value]
    clip_grad: Any = importlib.import_module("torch.nn.utils.clip_grad")
    grouped = clip_grad._group_tensors_by_device_and_dtype
    clip_grad._group_tensors_by_device_and_dtype = lambda tensors: {
        (CUDA, dtype): found for (_, dtype), found in grouped(tensors).items()
    }
    torch.cuda._lazy_init = lambda: None
    torch.cuda.current_device = lambda: CUDA.index
    torch.cuda.is_bf16_supported = _is_bf16_supported
    torch.cuda.default_generators = (torch.Generator(),)
    for name in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
        module: Any = importlib.import_module(name)
        module._get_foreach_kernels_supported_devices = lambda: ["cuda", "cpu"]
        module._get_fused_kernels_supported_devices = lambda: ["cuda", "cpu"]
        module._foreach_supported_types = [Tensor, torch.nn.Parameter, OnDevice]
    return Device()


def move(module: torch.nn.Module, memory_format: torch.memory_format) -> None:
    """Move a network to the pretend device. Its parameters are replaced by new objects."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    module.to(CUDA).to(memory_format=memory_format)
    torch.__future__.set_overwrite_module_params_on_conversion(False)


class _Event:
    """An event on the stream of the pretend device, whose work is done at once."""

    def __init__(self, *, enable_timing: bool = False) -> None:
        self._is_timed = enable_timing

    def record(self) -> None: ...

    def elapsed_time(self, end: _Event) -> float:
        assert self._is_timed, "torch measures between events that were made for it"
        return 1.0

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


class _Stream:
    """A stream of the pretend device, or a context in which it is the current one."""

    entered: ClassVar[list[object]] = []

    def __init__(self, stream: object) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        self.entered.append(self._stream)

    def __exit__(self, *_: object) -> None:
        self.entered.pop()
