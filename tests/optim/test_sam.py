"""SAM against its formula, and that the excursion leaves only the gradient behind."""

from __future__ import annotations

import pytest
import torch
from support.small_model import images, loss_of, same, small_model
from torch import nn

from cifar_dist.optim.sam import ascended


def test_a_step_by_hand() -> None:
    """Loss a x^2 / 2 + b y^2 / 2 at (1, 1), a = 3, b = 4: gradient (3, 4), its norm 5."""
    model = nn.Linear(2, 1, bias=False)
    curvature = torch.tensor([3.0, 4.0])
    nn.init.ones_(model.weight)
    (curvature * model.weight[0].square() / 2).sum().backward()
    with ascended(model, rho=0.5, buffers=model.buffers):
        assert model.weight[0].tolist() == pytest.approx([1.3, 1.4])
        assert model.weight.grad is None
        (curvature * model.weight[0].square() / 2).sum().backward()
    assert model.weight.tolist() == [[1.0, 1.0]]
    (gradient,) = (parameter.grad for parameter in model.parameters())
    assert gradient is not None
    assert gradient[0].tolist() == pytest.approx([3 * 1.3, 4 * 1.4])


def test_the_gradient_is_that_at_the_weights_uphill() -> None:
    model, uphill = small_model(), small_model()
    loss_of(model, 0).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(uphill.parameters(), gradients, strict=True):
            parameter.add_(0.05 * gradient / norm)
    loss_of(uphill, 0).backward()
    with ascended(model, rho=0.05, buffers=model.buffers):
        second = loss_of(model, 0)
        second.backward()
    assert second.item() > loss_of(small_model(), 0).item()
    for mine, wanted in zip(model.parameters(), uphill.parameters(), strict=True):
        assert mine.grad is not None
        assert wanted.grad is not None
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_weights_and_batch_statistics_are_restored_bit_for_bit(scale: float) -> None:
    model, one_pass = small_model(), small_model()
    loss_of(one_pass, 0).backward()
    (loss_of(model, 0) * scale).backward()
    with ascended(model, rho=0.3, buffers=model.buffers):
        model(images(1))
    assert same(model.state_dict(), one_pass.state_dict())


def test_a_buffer_that_the_network_replaces_is_restored() -> None:
    class Counting(nn.Linear):
        passes: torch.Tensor

        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            self.passes = self.passes + 1
            return super().forward(values)

    model = Counting()
    model(torch.ones(1, 2)).sum().backward()
    with ascended(model, rho=0.1, buffers=model.buffers):
        model(torch.ones(1, 2)).sum().backward()
    assert model.passes == 1


def test_a_loss_scale_changes_nothing() -> None:
    weights = []
    for scale in (1.0, 1024.0):
        model = small_model()
        (loss_of(model, 0) * scale).backward()
        with ascended(model, rho=0.3, buffers=model.buffers):
            weights.append(model.get_parameter("0.weight").detach().clone())
    assert torch.equal(*weights)


def test_missing_and_zero_gradients_leave_the_weights_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (model(torch.ones(1, 2)) * 0).sum().backward()
    with ascended(model, rho=0.05, buffers=model.buffers):
        assert same(model.state_dict(), before)


def test_the_weights_are_restored_when_the_second_pass_fails() -> None:
    model = small_model()
    loss_of(model, 0).backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError), ascended(model, rho=0.05, buffers=model.buffers):
        model(torch.zeros(1, 1, 1, 1))
    assert same(model.state_dict(), before)
