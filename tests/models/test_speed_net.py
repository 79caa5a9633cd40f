"""The airbench networks against their paper and its code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.layers import layer_at
from torch import Tensor

from cifar_dist.models import build
from cifar_dist.models.speed_net import SpeedNet
from cifar_dist.training.device_speed import blueprint_of, operations_per_image


def small_net(name: str = "speed-net", *, channels: int = 3, **options: bool | float) -> SpeedNet:
    torch.manual_seed(0)
    model = build(name, classes=10, channels=channels, options={"widths": [8, 16, 16], **options})
    assert isinstance(model, SpeedNet)
    return model


def smooth_images(count: int, channels: int, seed: int) -> Tensor:
    """Return images whose neighbouring pixels are correlated, as in photographs."""
    noise = torch.randn(count, channels, 20, 20, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 3, stride=1) * 3


def test_the_default_network_has_the_size_of_airbench94() -> None:
    model = build("speed-net", classes=10, options={})
    assert sum(p.numel() for p in model.parameters()) == 1_972_792
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    norms = [f"groups.{group}.norm{norm}.weight" for group in range(3) for norm in (1, 2)]
    assert frozen == ["whiten.weight", *norms]


def test_without_a_learning_bias_no_gradient_is_computed_before_the_first_group() -> None:
    models = small_net(), small_net(whiten_bias=False), small_net(whiten_bias_share=0.25)
    assert [model.whiten.bias.requires_grad for model in models] == [True, False, True]
    learning, frozen, shared = (operations_per_image(blueprint_of(model), (32, 32, 3)) or 0 for model in models)
    inputs, outputs, side = 24, 8, 31
    gradient = 2 * 9 * inputs * outputs * side**2
    assert learning - frozen == gradient, "of the first group's images"
    assert learning - shared == 0.75 * gradient


@pytest.mark.parametrize("name", ["speed-net", "speed-net-96"])
@pytest.mark.parametrize(("images", "count"), [(8, 2), (9, 3), (1, 1)])
def test_a_bias_that_learns_from_a_share_changes_no_other_gradient(name: str, images: int, count: int) -> None:
    """Its own is that of the first images, times the ratio of all images to them."""
    batch, labels = smooth_images(images, 3, seed=4).double(), torch.arange(images)
    gradients = []
    for share in (1.0, 0.25):
        model = small_net(name, whiten_bias_share=share).double()
        model.initialize(batch)
        each = torch.zeros(images, 24, 1, 1, dtype=torch.float64, requires_grad=True)
        if share == 1:  # a bias for each image, whose gradients add up to the bias's
            model.whiten.register_forward_hook(lambda layer, inputs, output, each=each: output + each)
        loss = F.cross_entropy(model(batch), labels)
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        if share == 1:
            assert each.grad is not None
            gradients[0]["whiten.bias"] = each.grad[:count].sum((0, 2, 3)) * images / count
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_gradient_of_the_other_whitened_images_is_not_computed() -> None:
    images = torch.randn(8, 3, 32, 32)
    for share, count in ((1.0, 8), (0.25, 2)):
        inputs: list[Tensor] = []
        model = small_net(whiten_bias_share=share)
        first = model.get_submodule("groups.0.conv1")
        first.register_forward_pre_hook(lambda layer, given, inputs=inputs: inputs.extend(given))
        model(images)
        assert sum(map(len, inputs)) == 8
        assert sum(len(one) for one in inputs if one.requires_grad) == count


@pytest.mark.parametrize("directions", [1, 8, 12])
def test_whitening_uses_the_directions_in_which_images_vary_most(directions: int) -> None:
    images = smooth_images(100, 3, seed=5)
    every, some = small_net(), small_net(whiten_directions=directions)
    for model in (every, some):
        model.initialize(images)
    assert torch.equal(some.whiten.weight[:directions], every.whiten.weight[:directions])
    assert torch.equal(some.whiten.weight[directions:], -every.whiten.weight[:directions])
    assert some(images).isfinite().all()


def test_the_larger_network_has_the_size_of_airbench96() -> None:
    with torch.device("meta"):
        model = build("speed-net-96", classes=10, options={})
    count, inputs = 24 * 3 * 2**2 + 24, 24
    for width in (128, 384, 512):
        count += 9 * (inputs * width + 2 * width * width) + 3 * 2 * width
        inputs = width
    assert sum(p.numel() for p in model.parameters()) == count + 512 * 10 == 9_918_776
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"whiten.weight"} | {
        f"groups.{group}.norm{norm}.weight" for group in range(3) for norm in (1, 2, 3)
    }


def test_old_checkpoints_still_load() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    groups = [
        f"groups.{group}.{layer}"
        for group in range(3)
        for index in (1, 2)
        for layer in (f"conv{index}.weight", *(f"norm{index}.{value}" for value in norm))
    ]
    assert list(small_net().state_dict()) == ["whiten.weight", "whiten.bias", *groups, "head.weight"]


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 4), count=st.integers(1, 300), seed=st.integers(0, 2**31 - 1))
def test_filter_responses_are_white(channels: int, count: int, seed: int) -> None:
    """Responses are uncorrelated, with second moment e / (e + eps) for the patch covariance's eigenvalues e."""
    model = small_net(channels=channels)
    images = smooth_images(count, channels, seed)
    model.initialize(images)
    filters = model.whiten.weight[: channels * 4].double()
    responses = F.conv2d(images.double(), filters).transpose(0, 1).flatten(1)
    patches = F.unfold(images.double(), 2).transpose(0, 1).flatten(1)
    eigenvalues = torch.linalg.eigvalsh(patches @ patches.T / patches.shape[1]).flip(0)
    expected = torch.diag(eigenvalues / (eigenvalues + 5e-4))
    torch.testing.assert_close(responses @ responses.T / responses.shape[1], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.whiten.weight[channels * 4 :], -model.whiten.weight[: channels * 4])


def test_whitening_depends_on_the_images_alone() -> None:
    images = smooth_images(600, 3, seed=1)
    weights = []
    for version in (images, images.to(memory_format=torch.channels_last), images.flip(0)):
        model = small_net()
        torch.nn.init.normal_(model.whiten.weight)
        model.initialize(version)
        weights.append(model.whiten.weight)
    assert torch.equal(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2])  # same images in another order: no sign or filter swapped
    peaks = weights[0][:12].flatten(1)
    assert (peaks.gather(1, peaks.abs().argmax(1, keepdim=True)) > 0).all()


def test_images_of_one_colour_do_not_break_whitening() -> None:
    model = small_net()
    model.initialize(torch.zeros(10, 3, 32, 32))
    assert model.whiten.weight.isfinite().all()


@pytest.mark.parametrize("name", ["speed-net", "speed-net-96"])
def test_a_network_learns_from_gray_images_in_three_channels(name: str) -> None:
    """They vary in a third of the directions; responses in the others must not be rounding noise."""
    images = smooth_images(200, 1, seed=2).expand(-1, 3, -1, -1).contiguous()
    labels = (images.mean((1, 2, 3)) > 0).long()
    model = small_net(name)
    model.initialize(images)
    assert (model.whiten(images).std((0, 2, 3)) > 0.05).all()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.5, momentum=0.85)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(images), labels)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(losses) < 0.5 * losses[0]


def test_without_whitening_the_first_layer_learns_and_ignores_images() -> None:
    model = small_net(whiten=False)
    before = model.whiten.weight.clone()
    model.initialize(torch.randn(10, 3, 32, 32))
    assert model.whiten.weight.requires_grad
    assert torch.equal(model.whiten.weight, before)


def test_convolutions_start_as_the_identity() -> None:
    """Dirac initialisation: the first filters pass their channels through."""
    group = small_net().get_submodule("groups.1")
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(group.get_submodule("conv1")(x)[:, :8], x)
    x = torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(group.get_submodule("conv2")(x), x)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(2, 18), width=st.integers(2, 18), wide=st.booleans(), seed=st.integers(0, 2**31 - 1))
def test_a_pool_reads_all_that_is_computed(height: int, width: int, wide: bool, seed: int) -> None:
    """Pooled values and both gradients are those of a convolution that also computes what the pool ignores."""
    conv = layer_at(small_net(), "groups.1.conv1", torch.nn.Conv2d).double()
    shape = torch.randn(3, 8, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    images = (shape.to(memory_format=torch.channels_last) if wide else shape).requires_grad_()
    pooled = F.max_pool2d(conv(images), 2)
    expected = F.max_pool2d(F.conv2d(images, conv.weight, padding=1), 2)
    towards = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    torch.testing.assert_close(pooled, expected)
    ours, plain = (torch.autograd.grad(y, [images, conv.weight], towards) for y in (pooled, expected))
    torch.testing.assert_close(ours, plain)
    if height % 2 and width % 2 and height < 16:
        assert conv(images).shape[2:] == (height - 1, width - 1)


def airbench96(model: SpeedNet, images: Tensor) -> Tensor:
    """Compute the logits in training mode as airbench96 does, with padding "same" and the intended biases."""
    weights = dict(model.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, None, weights[f"{name}.bias"] * 8, training=True, eps=1e-12)

    x = F.gelu(F.conv2d(images, weights["whiten.weight"], weights["whiten.bias"]))
    for group in range(3):
        g = f"groups.{group}"
        x = F.conv2d(x, weights[f"{g}.conv1.weight"], padding="same")
        first = F.gelu(norm(F.max_pool2d(x, 2), f"{g}.norm1"))
        x = F.gelu(norm(F.conv2d(first, weights[f"{g}.conv2.weight"], padding="same"), f"{g}.norm2"))
        x = norm(F.conv2d(x, weights[f"{g}.conv3.weight"], padding="same"), f"{g}.norm3")
        x = F.gelu(x + first)
    return F.linear(F.max_pool2d(x, 3).flatten(1), weights["head.weight"]) * (1 / 9)


def test_the_larger_network_computes_what_airbench96_does() -> None:
    model = small_net("speed-net-96").double()
    images = smooth_images(8, 3, seed=3).double()
    images = F.interpolate(images, size=(32, 32))
    model.initialize(images)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    torch.testing.assert_close(model(images), airbench96(model, images))


def test_each_network_has_its_own_memory_of_batch_statistics() -> None:
    for name, share in (("speed-net", 0.4), ("speed-net-96", 0.1)):
        norm = layer_at(small_net(name), "groups.0.norm1", torch.nn.BatchNorm2d)
        norm(torch.ones(2, 8, 4, 4))
        torch.testing.assert_close(norm.running_mean, torch.full((8,), share))


def test_scale_multiplies_the_logits() -> None:
    images = torch.randn(4, 3, 32, 32)
    one, ninth = small_net(scale=1.0).eval(), small_net().eval()
    torch.testing.assert_close(ninth(images) * 9, one(images))


NORM_BIASES = {f"groups.{group}.norm{norm}.bias" for group in range(3) for norm in (1, 2)}


@pytest.mark.parametrize(
    ("option", "gain", "scaled"),
    [("bias_gain", 8.0, NORM_BIASES), ("bias_gain", 3.0, NORM_BIASES), ("whiten_gain", 8.0, {"whiten.bias"})],
)
def test_a_gain_is_a_learning_rate_of_its_square(option: str, gain: float, scaled: set[str]) -> None:
    """SGD on the stored biases equals the paper's parameter group with its LR times gain squared, decay included."""
    images, labels = smooth_images(64, 3, seed=2).double(), torch.arange(64) % 10
    lr, decay = 0.1, 0.01
    ungained: dict[str, float] = {"bias_gain": 1.0, "whiten_gain": 1.0, "scale": 1.0}
    both = ({**ungained, option: gain}, ungained)
    stored, plain = (small_net("speed-net", channels=3, **options).double() for options in both)
    learning = [(name, p) for name, p in plain.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in learning if name not in scaled]},
        {"params": [p for name, p in learning if name in scaled], "lr": lr * gain**2, "weight_decay": decay / gain**2},
    ]
    paper = torch.optim.SGD(groups, lr=lr, weight_decay=decay, momentum=0.85, nesterov=True)
    ours = torch.optim.SGD(
        [p for p in stored.parameters() if p.requires_grad], lr=lr, weight_decay=decay, momentum=0.85, nesterov=True
    )
    for _ in range(4):
        for model, optimizer in ((stored, ours), (plain, paper)):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    learnt = dict(stored.named_parameters())
    for name, parameter in learning:
        value = learnt[name] * gain if name in scaled else learnt[name]
        torch.testing.assert_close(value, parameter, atol=1e-9, rtol=1e-7)
        assert name not in scaled or parameter.abs().max() > 1e-3


def test_batch_norm_is_torchs_with_the_papers_settings() -> None:
    norm = layer_at(small_net(bias_gain=1.0), "groups.0.norm1", torch.nn.BatchNorm2d)
    reference = torch.nn.BatchNorm2d(8, eps=1e-12, momentum=0.4)
    for _ in range(3):
        x = torch.randn(4, 8, 5, 5) * 3 + 1
        torch.testing.assert_close(norm(x), reference(x))
    torch.testing.assert_close(norm.running_var, reference.running_var)
    torch.testing.assert_close(norm.eval()(x), reference.eval()(x))


def test_it_learns_in_bfloat16_and_channels_last() -> None:
    """Eight classes, distinguished by the position of a bright square: learnt to the last image within a few steps."""
    torch.manual_seed(0)
    labels = torch.arange(32) % 8
    images = torch.randn(32, 3, 32, 32) * 0.3
    for image, label in zip(images, labels.tolist(), strict=True):
        image[label % 3, (label // 4) * 16 : (label // 4) * 16 + 8, (label % 4) * 8 : (label % 4) * 8 + 8] += 2
    images = images.to(memory_format=torch.channels_last)
    model = small_net().to(memory_format=torch.channels_last)
    model.initialize(images)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.2, momentum=0.85, nesterov=True
    )
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert (model.eval()(images).argmax(1) == labels).all()
