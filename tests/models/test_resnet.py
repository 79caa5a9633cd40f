"""ResNet-18, -34 and -50 against torchvision's."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from cifar_dist.config import OptionValue
from cifar_dist.models import build


def resnet(name: str, *, classes: int = 10, **options: OptionValue) -> nn.Module:
    torch.manual_seed(0)
    return build(name, classes=classes, options=options)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvisions_weights_load_and_give_torchvisions_outputs(name: str) -> None:
    torch.manual_seed(1)
    reference = torchvision.models.get_model(name, weights=None, num_classes=10)
    images = torch.randn(2, 3, 64, 64)
    reference(images)  # running statistics that are not those of a new network
    model = resnet(name)
    model.load_state_dict(reference.state_dict())
    assert list(model.state_dict()) == list(reference.state_dict())
    torch.testing.assert_close(model.eval()(images), reference.eval()(images))
    torch.testing.assert_close(model.train()(images), reference.train()(images))


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_173_962), ("resnet50", 23_520_842)])
def test_with_the_cifar_stem_it_has_the_size_of_pytorch_cifars(name: str, count: int) -> None:
    with torch.device("meta"):
        model = resnet(name, stem="cifar")
    assert sum(p.numel() for p in model.parameters()) == count


def test_weights_start_as_torchvisions_do() -> None:
    """The distribution is He's normal by fan-out; the standard deviations agree within sampling error."""
    ours, reference = resnet("resnet18").state_dict(), torchvision.models.resnet18(num_classes=10).state_dict()
    for key, value in reference.items():
        if value.numel() > 10_000:
            assert ours[key].std().item() == pytest.approx(value.std().item(), rel=0.05), key


def test_the_cifar_stem_keeps_the_resolution() -> None:
    image = torch.randn(1, 3, 32, 32)
    sides = {}
    for stem in ("imagenet", "cifar"):
        model = resnet("resnet18", stem=stem).eval()
        seen: list[torch.Size] = []
        model.get_submodule("layer1").register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(output.shape)
        )
        assert model(image).shape == (1, 10)
        sides[stem] = seen[0][-1]
    assert sides == {"imagenet": 8, "cifar": 32}
