"""The engine: the same update on any backend, and ranks that agree."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedType
from support import engine_on_ranks
from support.engine_on_ranks import (
    BATCHES,
    CASES,
    Found,
    agreement,
    former,
    gradient,
    network,
    normalised,
    optimizer,
    prepared,
    samples,
    train,
    trained,
)
from support.engines import engine as start
from support.running import spawn
from torch import Tensor, nn

from cifar_dist import recipe
from cifar_dist.config import Config, OptimConfig, TrainConfig
from cifar_dist.distributed import start as starting
from cifar_dist.distributed import wrapped_model
from cifar_dist.distributed.asked_engine import AskedEngine
from cifar_dist.distributed.data_parallel import DataParallel
from cifar_dist.distributed.loss_scaler import LossScaler
from cifar_dist.distributed.start import check_engine
from cifar_dist.errors import UserError


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """Return the results of each of two real processes."""
    out = tmp_path_factory.mktemp("ranks") / "rank"
    (done,) = spawn([engine_on_ranks.__file__, str(out)])
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return [pickle.loads(out.with_name(f"rank-{rank}.pickle").read_bytes()) for rank in range(2)]


def by_torch(name: str, clip_norm: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Train the same steps in torch alone, each as one big batch."""
    module = network()
    updater = optimizer(name, module)
    images, labels = samples()
    for number, size in enumerate(BATCHES):
        updater.param_groups[0]["lr"] = 0.1 / (number + 1)
        updater.zero_grad()
        F.cross_entropy(module(images[:size]), labels[:size]).backward()
        if clip_norm:
            norm = nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
            assert norm > clip_norm, "or the test would show nothing"
        updater.step()
    return module, updater


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{n}-{a}-{c}" for n, a, c in CASES])
@pytest.mark.parametrize("processes", [1, 2])
def test_accumulation_and_processes_give_the_update_of_one_big_batch(
    request: pytest.FixtureRequest, processes: int, case: int
) -> None:
    """Including gradient clipping and batches that do not divide evenly. Only the order of additions differs."""
    name, accumulate, clip_norm = CASES[case]
    if processes == 1:
        everyone = [trained(name, accumulate, clip_norm)]
    else:
        everyone = [found["trained"][case] for found in request.getfixturevalue("ranks")]
    module, updater = by_torch(name, clip_norm)
    for found in everyone:
        assert found.keys() == everyone[0].keys()
        for key, value in found.items():
            assert torch.equal(value, everyone[0][key]), "the ranks hold the same"
        for parameter_name, parameter in module.named_parameters():
            torch.testing.assert_close(found[parameter_name], parameter.detach(), rtol=1e-4, atol=1e-5)
            for key, value in updater.state[parameter].items():
                torch.testing.assert_close(found[f"{key}/{parameter_name}"], value, rtol=1e-4, atol=1e-5)


PLUG_INS = """
from dataclasses import dataclass
from typing import ClassVar

from cifar_dist.config import RunningAverageConfig
from cifar_dist.config.average import LookaheadConfig
from cifar_dist.config.optim import MuonSGDConfig


@dataclass(frozen=True)
class Slow(LookaheadConfig):
    def weight(self, step, *, start, total):
        return 0.25


@dataclass(frozen=True)
class Half(RunningAverageConfig):
    gives_back: ClassVar[bool] = True

    def weight(self, step, *, start, total):
        return 0.5


@dataclass(frozen=True)
class MyMuon(MuonSGDConfig):
    pass
"""


@pytest.mark.parametrize(
    ("section", "name", "reason"),
    [
        ("average", "Slow", "needs an optimizer without a copy of the weights"),
        ("average", "Half", "needs an optimizer without a copy of the weights"),
        ("optim", "MyMuon", "needs full weights and gradients on each process"),
    ],
)
def test_a_plug_in_is_refused_where_the_method_that_it_derives_from_is(
    tmp_path: Path, section: str, name: str, reason: str
) -> None:
    """Its own name says nothing, and it would train other weights in silence."""
    code = tmp_path / "mine.py"
    code.write_text(PLUG_INS)
    config = recipe.load("demo", [f"--{section}.name", f"{code}:{name}"])
    check_engine(config, AskedEngine())
    with pytest.raises(UserError, match=rf'{section}\.name = "\S+:{name}" {reason}, not DeepSpeed ZeRO-1 or'):
        check_engine(config, AskedEngine("DEEPSPEED", "2"))


# ---- agreement --------------------------------------------------------------------------------------------------


def test_two_ranks_agree(ranks: list[Found]) -> None:
    assert [found["engine"] for found in ranks] == [("ddp", "DDP")] * 2
    assert [found["place"] for found in ranks] == [(0, 2, True), (1, 2, False)]
    for found in ranks:
        assert found["gather_unequal"].tolist() == [[0, 0], [10, 10], [11, 11], [12, 12]]
        assert found["gather_none_of_one"].tolist() == [[7.0] * 3] * 2
        assert found["gather_none_at_all"].shape == (0, 3)
        assert found["objects"] == [{"rank": 0}, {"rank": 1}]
        assert found["sum"] == [2.0, 1.0]
        assert found["exchange"] == [0.0, 1.0, 1.0]
        assert found["decide"] == "chosen by 0"


def test_a_failure_on_one_rank_fails_all_and_none_waits(ranks: list[Found]) -> None:
    for found in ranks:
        assert found["decide_fails"] == "UserError: no such thing, says 0"
        assert found["decide_broken"] == "TrainingFailedError: broken, says 0"
        assert found["decide_no_file"] == "StorageError: /nowhere/it: No such file or directory"
        assert found["together_fails"] == "UserError: the disk of rank 1"
        assert found["after_failures"] == [0, 1]
    assert [found["together"] for found in ranks] == ["own of 0", "own of 1"]


def test_one_process_agrees_with_itself_by_the_same_rules() -> None:
    found = agreement(start().ranks)
    assert (start().kind, start().description) == ("single", "one process")
    assert found["place"] == (0, 1, True)
    assert found["gather_unequal"].tolist() == [[0, 0]]
    assert found["objects"] == [{"rank": 0}]
    assert found["exchange"] == [0.0, 0.0, 1.0]
    assert found["decide_fails"] == "UserError: no such thing, says 0"
    assert found["decide_no_file"] == "StorageError: /nowhere/it: No such file or directory"


def test_ranks_that_do_not_synchronise_are_detected(ranks: list[Found]) -> None:
    for found in ranks:
        assert "the 2 processes hold different gradients after their first step" in str(found["differing"])


def test_a_buffer_that_no_checkpoint_has_is_each_process_s_own(ranks: list[Found]) -> None:
    """It may have another shape on each, as of a cache."""
    assert [found["own_buffers"] for found in ranks] == [([4, 6], 1.0), ([5, 6], 1.0)]


def test_ddp_names_the_parameters_without_a_gradient(ranks: list[Found]) -> None:
    """Not used at all; not used, and another pass follows; not used from the second step on."""
    for rank, found in enumerate(ranks):
        for said in found["lacking"]:
            assert said.startswith(f"'extra.weight', 'extra.bias' got no gradient in a step on rank {rank}, and DDP ne")


def test_a_layer_that_one_rank_skips_is_named_by_that_rank(tmp_path: Path) -> None:
    """Its next exchange would meet that of another bucket. A gradient of a micro-batch before hides what is missing."""
    out = tmp_path / "rank"
    (done,) = spawn([engine_on_ranks.__file__, str(out), "skipping"])
    assert done.returncode == 0, done.stderr
    for accumulate in (1, 2):
        lost, said = (out.with_name(f"rank-{rank}-{accumulate}.txt").read_text() for rank in range(2))
        assert said.startswith("'extra.weight', 'extra.bias' got no gradient in a step on rank 1, and DDP needs one of")
        assert lost.startswith("rank 0 has lost its connection to another rank")


@pytest.mark.parametrize("parts", [0, 2])
def test_one_process_trains_what_gets_a_gradient(parts: int) -> None:
    for passes, lacking in ((1, []), (0, ["extra.weight", "extra.bias"])):
        module = engine_on_ranks.Unused(passes)
        model = start(Config(train=TrainConfig(parts=parts))).prepare(module, optimizer("sgd", module))
        train(model, parts or 1, [16, 16])
        model.assert_synchronised()
        assert model.parameters_without_gradient() == lacking


def test_fixed_parts_name_what_no_process_uses(ranks: list[Found]) -> None:
    """A layer of which the second rank's part has a gradient is used."""
    assert [found["lacking_in_parts"] for found in ranks] == [[["extra.weight", "extra.bias"], []]] * 2


def test_an_optimizer_may_free_the_gradients_in_its_step() -> None:
    class Freeing(torch.optim.SGD):
        def step(self, closure: Callable[[], float] | None = None) -> Any:
            super().step()
            self.zero_grad()

    module = nn.Linear(6, 3)
    model = start().prepare(module, Freeing(module.parameters(), lr=0.1))
    train(model, 1, [16])
    model.assert_synchronised()
    assert model.parameters_without_gradient() == []


def test_gradients_are_compared_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has memory for its shards only cannot hold the full ones of a network."""
    full: list[weakref.ref[Tensor]] = []

    def gathered(tensor: Tensor) -> Tensor:
        assert all(former() is None for former in full)
        copy = tensor.detach().clone()
        full.append(weakref.ref(copy))
        return copy

    model = prepared("sgd")
    train(model, 1, [16])
    monkeypatch.setattr(wrapped_model, "full_tensor", gathered)
    model.assert_synchronised()
    assert len(full) == len(model.trainable_parameters())


def test_evaluation_uses_the_batch_statistics_of_rank_0(ranks: list[Found]) -> None:
    assert [found["drifted"] for found in ranks] == [(5.0, True, True)] * 2


def test_a_network_that_each_rank_drew_for_itself_is_that_of_rank_0(ranks: list[Found]) -> None:
    """As one of a plug-in may that draws from NumPy's generator. DDP sends weights, fixed parts did not."""
    first, second = (found["drawn"] for found in ranks)
    assert all(map(torch.equal, first, second))
    assert first[-3].tolist() == [5.0] * 4


def test_a_network_is_freed_when_the_next_one_is_prepared(ranks: list[Found]) -> None:
    """As by ``lr-find`` with several seeds. A first step shows which gradient is the last, the second its exchange."""
    assert [found["former"] for found in ranks] == [(True, ["exchange"] * 2)] * 2
    assert former() == (True, [])


def test_ddp_is_not_told_a_device_that_ranks_on_one_gpu_do_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate gives it the local rank as the device, which only a machine with as many GPUs as ranks has."""
    told: list[object] = []

    class DistributedDataParallel(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module, device_ids: object = None, output_device: object = None, **_: object):
            nn.Module.__init__(self)
            self.module = module
            told.extend([device_ids, output_device])

    here = start()
    here.kind = "ddp"
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", DistributedDataParallel)
    monkeypatch.setattr(Accelerator, "multi_device", True)
    module = network()
    here.prepare(module, optimizer("sgd", module))
    assert told == [None, None]


def test_synchronised_batch_norms_compute_as_one_process_with_the_whole_batch(ranks: list[Found]) -> None:
    """Gradients, batch statistics and their counters."""
    alone = normalised(synchronised=False)
    for apart, together in (found["normalised"] for found in ranks):
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(apart["gradient/0.weight"], alone["gradient/0.weight"], rtol=1e-2)


def test_a_rank_keeps_its_batch_statistics_until_they_are_saved(ranks: list[Found]) -> None:
    """DDP does not send them at every step; a checkpoint has those of rank 0."""
    (first, _), (second, _) = (found["normalised"] for found in ranks)
    name = "1.running_mean"
    assert not torch.equal(first[f"own/{name}"], second[f"own/{name}"])
    assert torch.equal(first[name], first[f"own/{name}"])
    assert torch.equal(second[name], first[f"own/{name}"])


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_compressed_gradients_have_the_bits_that_were_sent(ranks: list[Found], name: str, dtype: torch.dtype) -> None:
    for found in ranks:
        for key, plain in found["gradients"]["no"].items():
            sent = found["gradients"][name][key]
            assert torch.equal(sent, sent.to(dtype).float())
            assert not torch.equal(sent, plain)
            torch.testing.assert_close(sent, plain, rtol=0.02, atol=1e-3)


def test_one_process_that_a_launcher_started_sends_no_gradients(tmp_path: Path) -> None:
    """Accelerate gives one on a CPU to DDP, which would compress what no other process receives."""
    (done,) = spawn([engine_on_ranks.__file__, str(tmp_path / "rank"), "alone"])
    assert done.returncode == 0, done.stderr
    found = pickle.loads((tmp_path / "rank-0.pickle").read_bytes())
    assert found == {"type": DistributedType.MULTI_CPU, "is_bare": True, "sends": False}


class Offloading(DataParallel):
    """As DeepSpeed on a GPU with its optimizer on the CPU, without the GPU."""

    updates_on_cpu = True

    def __init__(self, config: Config, *, cpu: bool) -> None:
        assert not cpu
        super().__init__(config, cpu=True)


@pytest.mark.parametrize(("asked", "threads"), [(3, 3), (0, 4)])
def test_an_optimizer_on_the_cpu_has_the_cores_where_the_network_has_a_gpu(
    monkeypatch: pytest.MonkeyPatch, asked: int, threads: int
) -> None:
    """The launcher gives each process one thread."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("check_gpus", "check_own_gpu", "check_cpu_is_used"):
        monkeypatch.setattr(starting, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(starting, "_engine_class", lambda *_: Offloading)
    monkeypatch.setattr(starting, "share_cores", lambda processes: 4 // processes)
    try:
        torch.set_num_threads(1)
        with starting.start_engine(Config(train=TrainConfig(threads=asked))):
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_inference_asks_the_bare_module_without_gradients() -> None:
    model = prepared("sgd")
    images, _ = samples()
    logits = model.infer(images)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(logits, model.module(images))


@pytest.mark.parametrize("scales_loss", [False, True])
def test_the_norms_of_a_step_are_of_its_gradients_before_anything_changes_them(scales_loss: bool) -> None:
    """Clipping does, a loss scale of fp16, and torch's SGD in the form that it has on a GPU."""
    engine = start(Config(optim=OptimConfig(clip_norm=0.05)))
    if scales_loss:  # as in fp16, which no CPU computes in
        engine.accelerator.scaler = LossScaler("cpu")
    module, found = network(), list[dict[str, float]]()
    sgd = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, nesterov=True, foreach=True)
    model = engine.prepare(module, sgd)
    model.before_update = lambda: found.append(model.gradient_norms())
    train(model, 1, BATCHES[:1])
    alone = network()
    images, labels = samples()
    F.cross_entropy(alone(images), labels).backward()
    (norms,) = found
    assert norms == pytest.approx({name: float(gradient(p).norm()) for name, p in alone.named_parameters()}, rel=1e-5)
