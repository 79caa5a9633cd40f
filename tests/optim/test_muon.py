"""Muon against the published update by hand, torch's own for matrices, and airbench's for convolutions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pretend_cuda import OnDevice
from support.small_model import loss_of, same, small_model, train
from torch import Tensor, nn

from cifar_dist.models import build
from cifar_dist.optim import newton_schulz
from cifar_dist.optim.muon import Muon, hidden_weights
from cifar_dist.optim.newton_schulz import PaddedBatches, iterate, orthogonalize


def others(model: nn.Module) -> list[nn.Parameter]:
    hidden = {id(weight) for weight in hidden_weights(model)}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in hidden]


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.85, nesterov=True, weight_decay=1e-3)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)


PLAIN: dict[str, Any] = {"momentum": 0.95, "nesterov": True, "weight_decay": 0.0, "normalize": False, "iterations": 5}
AIRBENCH = PLAIN | {"momentum": 0.6, "normalize": True, "iterations": 3}


def muon(model: nn.Module, rest: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = sgd, lr: float = 0.1) -> Muon:
    return Muon(hidden_weights(model), rest(others(model)), lr=lr, **AIRBENCH)


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_computes_in_the_bf16_that_it_does_not_emulate(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(newton_schulz, "_gpu_has_bf16", lambda: has_bf16)
    assert orthogonalize(OnDevice(torch.eye(3)), 5).dtype is dtype


def test_two_steps_by_hand() -> None:
    """Newton-Schulz is a polynomial of each singular value, so a diagonal matrix remains diagonal."""

    def newton_schulz(first: float, second: float) -> list[float]:
        norm = (first**2 + second**2) ** 0.5
        values = [first / norm, second / norm]
        for _ in range(5):
            values = [3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5 for x in values]
        return values

    weight, bias = nn.Parameter(torch.eye(2)), nn.Parameter(torch.zeros(1))
    optimizer = Muon([weight], sgd([bias]), lr=0.1, **PLAIN | {"momentum": 0.5, "weight_decay": 0.2})
    expected, buffer = [1.0, 1.0], [0.0, 0.0]
    for gradient in ([3.0, -1.0], [2.0, 4.0]):
        weight.grad = torch.diag(torch.tensor(gradient))
        optimizer.step()
        buffer = [0.5 * b + 0.5 * g for b, g in zip(buffer, gradient, strict=True)]
        update = newton_schulz(*(0.5 * b + 0.5 * g for b, g in zip(buffer, gradient, strict=True)))
        expected = [(1 - 0.1 * 0.2) * w - 0.1 * u for w, u in zip(expected, update, strict=True)]
    assert torch.diag(weight.detach()).tolist() == pytest.approx(expected, rel=1e-5)
    assert weight[0, 1] == weight[1, 0] == 0


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_a_linear_layer_is_torchs_muon(shape: tuple[int, int], nesterov: bool) -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    settings = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    optimizers = (
        Muon([ours], sgd([nn.Parameter(torch.zeros(1))]), **PLAIN | settings),
        torch.optim.Muon([theirs], **settings),  # type: ignore[arg-type]
    )
    for _ in range(3):
        gradient = torch.randn(shape)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    # Torch computes in bfloat16, which has 8 bits: three updates of 0.02 times about 1.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3 * 0.02 * 5e-2)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_in_bfloat16_the_iteration_is_torchs_bit_for_bit(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape)
    torch.optim.Muon([weight], lr=1.0, momentum=0.0, weight_decay=0.0).step()
    scale = max(1.0, shape[0] / shape[1]) ** 0.5
    ours = torch.zeros(shape).add_(iterate(weight.grad.bfloat16(), 5), alpha=-scale)
    assert torch.equal(ours, weight)


def airbench(weights: list[Tensor], buffers: list[Tensor], gradients: list[Tensor], lr: float, momentum: float) -> None:
    """Compute the update of airbench94_muon, transcribed from its source, in float64."""
    for weight, buffer, gradient in zip(weights, buffers, gradients, strict=True):
        buffer.mul_(momentum).add_(gradient)
        x = (gradient + momentum * buffer).reshape(len(weight), -1)
        weight.mul_(len(weight) ** 0.5 / weight.norm())
        x = x / (x.norm() + 1e-7)
        for _ in range(3):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        weight.sub_(lr * x.view(weight.shape))


def test_convolutions_follow_airbench() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(16, 8, 3, 3))]
    ours[1].data = ours[1].data.to(memory_format=torch.channels_last)
    theirs = [weight.detach().double() for weight in ours]
    buffers = [torch.zeros_like(weight) for weight in theirs]
    rest = sgd([nn.Parameter(torch.zeros(1))])
    optimizer = Muon(ours, rest, lr=0.24, **AIRBENCH)
    for _ in range(3):
        gradients = [torch.randn_like(weight) for weight in ours]
        for weight, gradient in zip(ours, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        airbench(theirs, buffers, [gradient.double() for gradient in gradients], lr=0.24, momentum=0.6)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert (mine.double() - wanted).norm() / wanted.norm() < 1e-6
    assert ours[1].is_contiguous(memory_format=torch.channels_last)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(-6, 6), st.integers(0, 1000))
def test_singular_values_approach_one_and_vectors_do_not_change(
    rows: int, columns: int, log_scale: float, seed: int
) -> None:
    """The published property of matrices that are not nearly singular."""
    small = min(rows, columns)
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, small, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, small, generator=generator))[0]
    values = torch.rand(small, generator=generator) * 0.9 + 0.1
    result = orthogonalize(10**log_scale * (left * values) @ right.T, 5)
    assert result.shape == (rows, columns)
    inner = left.T @ result @ right
    assert (inner.diagonal() - 0.95).abs().max() < 0.32
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-4


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 24), st.integers(1, 120), st.integers(1, 6), st.floats(0, 5), st.sampled_from([(), (2,)]), st.data()
)
def test_the_iteration_on_gram_matrices_is_that_on_the_matrices(
    rows: int, columns: int, iterations: int, decades: float, batch: tuple[int, ...], data: st.DataObject
) -> None:
    """Also of nearly singular ones, whose Gram matrices have eigenvalues that float32 rounds below zero."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    matrices = torch.randn(*batch, rows, columns, generator=generator)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    matrices = left * (values * torch.logspace(0, -decades, values.shape[-1])).unsqueeze(-2) @ right
    wanted = matrices.double() / torch.linalg.matrix_norm(matrices.double(), keepdim=True)
    for _ in range(iterations):
        gram = wanted @ wanted.mT
        wanted = 3.4445 * wanted + (-4.7750 * gram + 2.0315 * gram @ gram) @ wanted
    # A singular value in the last digits of float32 grows by 3.4 in each iteration, and its error with it.
    tolerance = 1e-6 * 3.4445**iterations + 1e-5
    torch.testing.assert_close(iterate(matrices, iterations).double(), wanted, rtol=0, atol=tolerance)


def test_twenty_iterations_of_a_singular_matrix_do_not_diverge() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(8, 6) @ torch.randn(6, 100)
    values = torch.linalg.svdvals(iterate(matrix, 20))
    assert values.max() < 1.3
    assert (values > 0.6).sum() >= 6


@pytest.mark.parametrize("shape", [(3, 4), (2, 9)])
def test_a_zero_gradient_does_not_update(shape: tuple[int, int]) -> None:
    assert torch.equal(orthogonalize(torch.zeros(shape), 5), torch.zeros(shape))


@pytest.mark.parametrize("rest", [sgd, adamw])
def test_the_other_parameters_follow_the_other_optimizer_bit_for_bit(
    rest: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    models = [small_model(), small_model()]
    optimizers: list[torch.optim.Optimizer] = [muon(models[0], rest), rest(others(models[1]))]
    for step in range(3):
        for group in [*optimizers[0].param_groups[1:], *optimizers[1].param_groups]:
            group["lr"] = 0.01 * (step + 1)  # as a schedule does, through the one optimizer's groups
        for parameters in zip(*(model.parameters() for model in models), strict=True):
            gradient = torch.randn_like(parameters[0])
            for parameter in parameters:
                parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, wanted in zip(*(others(model) for model in models), strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("rest", [sgd, adamw])
@pytest.mark.parametrize("through_torch", [True, False])
def test_a_resume_is_exact_to_the_bit(
    rest: Callable[[list[nn.Parameter]], torch.optim.Optimizer], through_torch: bool
) -> None:
    """Tensor by tensor in ``state``, as the engine does, and with torch's state_dict, as Accelerate does."""
    model = small_model()
    optimizer = muon(model, rest)
    train(model, optimizer, range(3))
    resumed = small_model()
    resumed.load_state_dict(model.state_dict())
    again = muon(resumed, rest)
    if through_torch:
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        for before, after in zip(model.parameters(), resumed.parameters(), strict=True):
            state = optimizer.state[before]
            assert state
            assert all(isinstance(value, Tensor) and value.shape in (before.shape, ()) for value in state.values())
            again.state[after] = {key: value.clone() for key, value in state.items()}
    train(model, optimizer, range(3, 6))
    train(resumed, again, range(3, 6))
    assert same(model.state_dict(), resumed.state_dict())


def test_hidden_weights_leave_out_the_first_layer_the_head_and_the_frozen() -> None:
    def names(name: str) -> list[str]:
        model = build(name, classes=10, options={"widths": [4, 4, 4]} if name == "speed-net" else {})
        by_id = {id(parameter): key for key, parameter in model.named_parameters()}
        return [by_id[id(weight)] for weight in hidden_weights(model)]

    assert names("speed-net") == [f"groups.{group}.conv{conv}.weight" for group in range(3) for conv in (1, 2)]
    tiny = names("tiny-resnet")
    assert len(tiny) == 8
    assert not {"stem.0.weight", "head.0.weight"} & set(tiny)


def test_hidden_weights_leave_out_what_is_in_no_linear_layer_or_convolution() -> None:
    """As the description says: torch's attention keeps its input projections in a parameter of its own."""
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.Linear(8, 2))
    left = {id(parameter) for parameter in others(model)}
    names = {key for key, parameter in model.named_parameters() if id(parameter) not in left}
    assert names == {"1.out_proj.weight", "2.weight"}


def test_it_learns() -> None:
    model = small_model()
    optimizer = muon(model, lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_a_batch_of_padded_matrices_is_each_matrix_alone() -> None:
    shapes = [(8, 27), (27, 8), (16, 72), (5, 5), (1, 40), (512, 4608), (64, 600)]
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in shapes]
    layout = PaddedBatches(shapes, torch.device("cpu"))
    assert len(layout._batches) == 2, "small matrices are padded together, and not to a large one"
    together = layout.orthogonalize(torch.cat([*(matrix.flatten() for matrix in matrices), layout.zero]), 3)
    for matrix, found in zip(matrices, together.split([matrix.numel() for matrix in matrices]), strict=True):
        rows, columns = matrix.shape
        alone = orthogonalize(matrix, 3) * max(1.0, rows / columns) ** 0.5
        torch.testing.assert_close(found.view(matrix.shape), alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_step_of_a_gpu_is_that_of_a_cpu(normalize: bool) -> None:
    """It has few launches and the same results up to the order of additions; here it runs on the CPU."""
    found = []
    for batched in (False, True):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(shape)) for shape in ((8, 3, 3, 3), (16, 8, 3, 3), (30, 7))]
        weights[1].data = weights[1].data.to(memory_format=torch.channels_last)
        rest = sgd([nn.Parameter(torch.zeros(1))])
        settings = PLAIN | {"weight_decay": 0.1, "normalize": normalize}
        optimizer = Muon(weights, rest, lr=0.2, batched=batched, **settings)
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape)
            optimizer.step()
        found.append([weight.detach() for weight in weights])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert one.stride() == other.stride()
