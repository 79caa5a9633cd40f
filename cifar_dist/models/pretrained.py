"""Load pretrained weights, from a file or a library's published ones, for fine-tuning and feature extraction."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from cifar_dist.errors import UserError, first_line, printable, quoted
from cifar_dist.files.locks import try_lock
from cifar_dist.formatting import and_more, counted, list_some
from cifar_dist.models.transfer import last_layer
from cifar_dist.models.weight_files import WEIGHT_SUFFIXES, read_weights, require_state_dict
from cifar_dist.terminal.notice import notice

PUBLISHED = "published"
_SAME_AS_TORCHVISION = ("resnet18", "resnet34", "resnet50")  # our models whose keys and shapes equal torchvision's
_IN_RUNS = ("", "final", "checkpoints/best")  # where a run, or its checkpoint, has weights
_IN_FOLDERS = ("model.safetensors", "averaged.safetensors", "weights.safetensors")  # the first is the one to evaluate
_OTHER_STATE = ("optimizer.safetensors", "averaged_statistics.safetensors")  # of a checkpoint, beside its weights
_PART = re.compile(r"-\d+-of-\d+$")  # at the end of the name of a part of a file, without its suffix
_TIMEOUT_SECONDS = 30  # without a byte received; torch by itself would wait forever
_LONGEST_WAIT_SECONDS = 600  # for the download of another process, whose file server may not know that it is lost
_USE_THEIR_NETWORK = "use the model.name and model.options of their network"
_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # of GoogLeNet and Inception, which we build without them


def load_pretrained(model: nn.Module, source: str | Path, name: str) -> list[str]:
    """Copy weights into ``model``; the last layer keeps its initialisation where the number of classes differs.

    Args:
        model: the unwrapped network, on the CPU.
        source: a file as of :func:`~cifar_dist.models.weight_files.read_weights`, or ``published`` for the weights that
            the model's library offers. Those are downloaded once into the library's cache, so call this on one process
            per node first.
        name: the registered name that ``model`` was built from.

    Returns:
        The keys that were not loaded: those of the last layer, or none.

    Raises:
        UserError: the file cannot be read or downloaded, belongs to another network, or no weights are published.
    """
    if source == PUBLISHED:
        weights, origin = _find_published(model, name)(), f"the published weights of {name}"
    else:
        weights, origin = _read_pretrained(Path(source), model), str(source)
    skipped = _refuse_misfits(weights, model, origin, name)
    model.load_state_dict({key: value for key, value in weights.items() if key not in skipped}, strict=False)
    return skipped


def check_pretrained(model: nn.Module, source: str, name: str) -> None:
    """Check, before a job or a sweep begins, that :func:`load_pretrained` will succeed. Nothing is downloaded.

    Args:
        model: the unwrapped network, which may be on the meta device.
        source, name: as of :func:`load_pretrained`; no weights are asked for if ``source`` is empty.

    Raises:
        UserError: the file cannot be read or belongs to another network, or no weights are published.
    """
    if source == PUBLISHED:
        _find_published(model, name)
    elif source:
        _refuse_misfits(_read_pretrained(Path(source), model), model, source, name)


def _refuse_misfits(weights: Mapping[str, Tensor], model: nn.Module, origin: str, name: str) -> list[str]:
    """Refuse weights of another network; return the keys of a last layer for other classes."""
    own = model.state_dict()
    last = last_layer(model)
    other_shape = [key for key, value in own.items() if key in weights and weights[key].shape != value.shape]
    of_head = [key for key in other_shape if last is not None and key.rpartition(".")[0] == last[0]]
    skipped = [key for key in of_head if weights[key].shape[1:] == own[key].shape[1:]]  # other classes
    # Some files predate the step counts of batch normalisation, which nothing here uses.
    missing = [key for key in own if key not in weights and not key.endswith(".num_batches_tracked")]
    unknown = [key for key in weights if key not in own]
    wrong = [key for key in other_shape if key not in skipped]
    fitting = [key for key in own if key in weights and own[key].is_floating_point()]
    integers = [key for key in fitting if not weights[key].is_floating_point()]
    broken = [key for key in fitting if key not in integers and not bool(torch.isfinite(weights[key]).all())]
    for keys, problem in (
        (missing, "missing"),
        (unknown, "unexpected"),
        (wrong, "of another shape"),
        (integers, "of an integer type"),
        (broken, "not finite"),
    ):
        if keys:
            theirs = f"; its keys are {list_some(list(weights), 2)}" if weights and len(unknown) == len(weights) else ""
            if keys is missing and 0 < len(unknown) < len(weights):
                way = _rename(unknown, missing, weights, own) or _USE_THEIR_NETWORK
                theirs = f"; unexpected: {and_more(unknown[:1], len(unknown))}; {way}"
            if keys is wrong:
                key = wrong[0]
                theirs = _compare_shapes(key, weights[key].shape, own[key].shape, is_only=len(wrong) == 1)
            some = and_more(keys[:1], len(keys))
            raise UserError(f"model.pretrained: {origin} does not fit {name}: {problem}: {some}{theirs}")
    return skipped


def _rename(
    unknown: Sequence[str], missing: Sequence[str], weights: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> str:
    """Say how to rename the part of a network that a file has under another name, as ``fc.1`` for ``fc``.

    Args:
        unknown: keys that only ``weights`` has, the file.
        missing: keys that only ``own`` has, the network.

    Returns:
        The expression; empty if the keys do not differ in one prefix, or their tensors do in more than their first
        dimension, the classes of a last layer.
    """
    leaf = missing[0].rpartition(".")[2]
    before, after = unknown[0].removesuffix(leaf), missing[0].removesuffix(leaf)
    if not before.endswith("."):
        return ""
    renamed = {key.replace(before, after): weight for key, weight in weights.items()}
    if not {*missing} <= renamed.keys() <= own.keys() or len(renamed) < len(weights):
        return ""
    if any(renamed[key].shape[1:] != own[key].shape[1:] for key in missing):
        return ""
    names = f"{{k.replace({before!r}, {after!r}): v for k, v in weights.items()}}"
    return f"rename them: torch.save({names}, 'weights.pth')"


def _compare_shapes(key: str, theirs: torch.Size, ours: torch.Size, *, is_only: bool) -> str:
    """Name the shapes of a weight in a file and in a network, of which it may be the only one that differs."""
    there, here = ("x".join(map(str, shape)) or "a scalar" for shape in (theirs, ours))
    way = _USE_THEIR_NETWORK
    if is_only and len(theirs) == len(ours) == 4 and (*theirs[:1], *theirs[2:]) == (*ours[:1], *ours[2:]):
        way = f"use images of {counted(theirs[1], 'channel')}"  # else a convolution before would differ too
    return f"; {key} is {there} there and {here} in the network; {way}"


def _read_pretrained(path: Path, model: nn.Module) -> dict[str, Tensor]:
    if not path.is_file() or is_part_of_checkpoint(path):
        raise UserError(f"model.pretrained: {path} {_say_what_to_give(path)}")
    try:
        return read_weights(path, model)
    except ValueError as error:
        raise UserError(f"model.pretrained: cannot read weights from {path}: {error}") from None


def find_weights(folder: Path) -> Path | None:
    """Return the file of weights in a folder, of a checkpoint's those to evaluate; None for none in one file."""
    named = (folder / name for name in _IN_FOLDERS)
    others = sorted(path for suffix in WEIGHT_SUFFIXES for path in folder.glob(f"*{suffix}"))
    usable = (path for path in others if path.name not in _OTHER_STATE and not _PART.search(path.stem))
    return next((path for path in (*named, *usable) if path.is_file()), None)


def is_part_of_checkpoint(path: Path) -> bool:
    """Whether a file has a part of the weights, or of the other state, of a checkpoint that several processes wrote."""
    return _PART.search(path.stem) is not None and (path.parent / "COMPLETE.json").is_file()


def _say_what_to_give(path: Path) -> str:
    """Say what is wrong with a path that is not a file, and what to give: of a run, its final or best weights."""
    if not path.exists():
        such = "" if path.suffix else f", as runs/{path.name}/final/model.safetensors of a run"
        return f"does not exist; give a .safetensors or .pth file{such}"
    if is_part_of_checkpoint(path):
        return f"is a part of a checkpoint; {_way_to_join(path.parent)}"
    if not path.is_dir():
        return "is not a file; give a .safetensors or .pth file"
    places = [path / place for place in _IN_RUNS]
    files = [file for file in map(find_weights, places) if file is not None]
    for place in places:
        if not files and any(map(is_part_of_checkpoint, place.glob("weights-*"))):
            return f"is a folder with weights in parts; {_way_to_join(place)}"
    such = f", as {' or '.join(map(str, files))}" if files else ""
    return f"is a folder; give a .safetensors or .pth file{such}"


def _way_to_join(folder: Path) -> str:
    """Return how to get a file of weights of the run that has the checkpoint ``folder``, whose weights are in parts."""
    run = folder.parent.parent if folder.parent.name == "checkpoints" else None
    final = f"give {run}/final/model.safetensors, or " if run and (run / "final/model.safetensors").is_file() else ""
    return f"{final}write the best ones of its run as one file: cifar-dist runs best{f' {quoted(run)}' if run else ''}"


def _find_published(model: nn.Module, name: str) -> Callable[[], dict[str, Tensor]]:
    """Return what loads the published weights, with a download if needed; refuse a network that has none."""
    library, _, library_name = name.partition(":")
    if name in _SAME_AS_TORCHVISION:
        _, channels, *kernel = model.get_parameter("conv1.weight").shape
        ways = ["images of 3 channels"] * (channels != 3)
        ways += ["--model.options.stem imagenet --model.image_size 224"] * (kernel != [7, 7])
        if ways:
            raise UserError(
                f"model.pretrained: the published weights of {name} require 3 channels and the imagenet stem; "
                f"use {' and '.join(ways)}"
            )
        return partial(_load_from_torchvision, name)
    if library == "torchvision":
        if getattr(model, "transform_input", None) is False:  # torchvision sets it when it loads the weights itself
            raise UserError(
                f"model.pretrained: the published weights of {name} were trained on images of mean and deviation 0.5, "
                "to which the network must convert its input; use --model.options.transform_input true"
            )
        return partial(_load_from_torchvision, library_name)
    if library == "timm":
        import timm  # installed, or the model could not have been built

        if timm.models.is_model_pretrained(library_name):
            return partial(_load_from_timm, library_name)
    raise UserError(f"model.pretrained: no weights are published for {name}; use --model.pretrained FILE")


def _load_from_torchvision(name: str) -> dict[str, Tensor]:
    """Load torchvision's default weights for one of its models, downloading them into torch's cache if needed."""
    import torchvision

    default = torchvision.models.get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir(), "checkpoints", default.url.rpartition("/")[2])
    with _only_download(cached):
        was_cached = cached.is_file()  # before: while a download fails here, one of another job may end
        try:
            with _socket_timeout():
                # Without weights_only torchvision would unpickle whatever the cache contains.
                published = require_state_dict(
                    default.get_state_dict(
                        progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
                    )
                )
        except Exception as error:
            if was_cached:
                raise UserError(
                    f"model.pretrained: cannot read weights from {cached}: {first_line(error)}; delete that file"
                ) from None
            raise UserError(
                f"model.pretrained: cannot download {default.url} ({first_line(error)}); download it on a machine with "
                f"a network and copy it to {cached}, or use --model.pretrained FILE"
            ) from None
    # DenseNet weights use the key names of an older torch: norm.1 for norm1.
    renamed = ((re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key), published[key]) for key in published)
    return {key: value for key, value in renamed if not key.startswith(_AUXILIARY_HEADS)}


def _load_from_timm(name: str) -> dict[str, Tensor]:
    """Load timm's weights for one of its models, downloading them into the Hugging Face Hub's cache if needed."""
    import timm
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        _require_answer_of_hub(timm.get_pretrained_cfg(name).hf_hub_id)
        weights: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        raise UserError(
            f"model.pretrained: cannot download timm's weights for {name} ({first_line(error)}); download them on a "
            f"machine with a network into {HF_HUB_CACHE}, or use --model.pretrained FILE"
        ) from None
    return weights


def _require_answer_of_hub(repository: str | None) -> None:
    """Raise an error if weights are not in the cache and the Hub does not answer.

    Its library would ask an unanswering one for every file again and again, for over ten minutes, and has no setting
    for that.
    """
    from huggingface_hub import HfApi, snapshot_download

    if repository is None:
        return
    try:
        snapshot_download(repository, local_files_only=True)
    except Exception:  # it is not in the cache
        try:
            HfApi().model_info(repository, timeout=_TIMEOUT_SECONDS)
        except Exception as error:
            if "Timeout" in type(error).__name__:  # each version of the library has a class of another HTTP library
                raise
            # Whatever else it answers is retried, or explained, as the weights are loaded.


def _only_download(cached: Path) -> AbstractContextManager[object]:
    """Wait until no other process downloads a file into torch's cache, and have others wait until the context ends.

    The Hub's library does so itself.
    """
    if cached.is_file():
        return nullcontext()
    try:
        locks = cached.parent.parent / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = (locks / cached.name).open("a")
    except OSError:  # of a cache that cannot be written, which the download reports
        return nullcontext()
    deadline, is_said = time.monotonic() + _LONGEST_WAIT_SECONDS, False
    while not try_lock(lock) and time.monotonic() < deadline:
        if not is_said:
            notice(printable(f"waiting for another process that downloads {cached}"))
            is_said = True
        time.sleep(0.1)
    return lock


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Time out, within the context, on connections that send nothing."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
