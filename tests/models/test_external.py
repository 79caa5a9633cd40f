"""Networks of torchvision and timm by name, and which of them are refused."""

from __future__ import annotations

import sys

import pytest
import timm
import torch
import torchvision
from torch import nn

from cifar_dist.config import ModelConfig, OptionValue
from cifar_dist.errors import UserError
from cifar_dist.models import build, build_for

REFUSED: list[tuple[str, dict[str, OptionValue], str]] = [
    ("torchvision:resnet19", {}, "did you mean 'resnet18'?"),
    ("torchvision:fcn_resnet50", {}, "no classification model"),
    ("torchvision:resnet18", {"depth": 3}, "unexpected keyword argument 'depth'"),
    ("torchvision:resnet18", {"weights": "DEFAULT"}, "model.options.weights cannot be set for torchvision:resnet18"),
    ("timm:resnet18", {"pretrained": True}, "model.options.pretrained cannot be set for timm:resnet18"),
    ("torchvision:resnet18", {"pretrained": True}, "resnet18; use --model.pretrained published"),
    ("timm:resnet18", {"checkpoint_path": "weights.pth"}, "checkpoint_path cannot be set for timm:resnet18"),
]
REFUSED_BY_TIMM: list[tuple[str, dict[str, OptionValue], str]] = [
    ("timm:resnet19", {}, "timm has no model 'resnet19'; did you mean 'resnet18'?"),
    ("timm:resnet18.no_such_weights", {}, "timm has no model 'resnet18.no_such_weights'"),
    ("timm:", {}, "timm.list_models() lists them"),
    ("timm:local-dir:/etc", {}, "timm has no model 'local-dir:/etc'"),
    ("timm:hf-hub:timm/resnet18.a1_in1k", {}, "timm has no model 'hf-hub:timm/resnet18.a1_in1k'"),
    ("timm:resnet18", {"depth": 3}, "unexpected keyword argument 'depth'"),
    ("timm:vit_tiny_patch16_224", {"patch_size": "x"}, "model.options: timm:vit_tiny_patch16_224 rejects them: "),
]


def refusal(name: str, options: dict[str, OptionValue]) -> str:
    with pytest.raises(UserError) as caught:
        build(name, classes=10, options=options)
    message = str(caught.value)
    assert message.startswith("model.")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("name", "options", "says"), REFUSED)
def test_bad_names_and_options_are_refused_in_one_line(name: str, options: dict[str, OptionValue], says: str) -> None:
    assert says in refusal(name, options)


@pytest.mark.parametrize(("name", "options", "says"), REFUSED_BY_TIMM)
def test_a_name_of_timm_must_be_in_its_list(name: str, options: dict[str, OptionValue], says: str) -> None:
    assert says in refusal(name, options)


def test_torchvision_models_are_torchvisions_own() -> None:
    torch.manual_seed(0)
    model = build("torchvision:shufflenet_v2_x0_5", classes=5, options={}).eval()
    torch.manual_seed(0)
    reference = torchvision.models.shufflenet_v2_x0_5(num_classes=5).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), reference(images))
    with pytest.raises(UserError, match="require 3 channels, but the images have 1; choose another model"):
        build("torchvision:resnet18", classes=5, channels=1, options={})


def test_a_missing_timm_is_one_line_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what makes an import fail, installed or not
    assert "timm:resnet18 requires timm; install it with: pip install timm" in refusal("timm:resnet18", {})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t.c3_in1k", {"drop_rate": 0.1}),  # with the tag of its published weights
        ("nf_resnet26", {"stem_chs": 16}),  # convolutions that standardise their weights
        ("tf_efficientnet_b0", {}),  # convolutions that pad by the size of the image
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "depth": 2}),
    ],
)
def test_timm_models_are_timms_own_and_can_be_handmade(name: str, options: dict[str, OptionValue]) -> None:
    images = torch.randn(2, 1, 32, 32)
    torch.manual_seed(0)
    expected = timm.create_model(name, num_classes=7, in_chans=1, **options).eval()(images)

    def network(**conv: str) -> nn.Module:
        torch.manual_seed(0)
        config = ModelConfig(name=f"timm:{name}", options=options, **conv)  # type: ignore[arg-type]
        return build_for(config, shape=(32, 32, 1), classes=7).eval()

    assert torch.equal(network()(images), expected)
    torch.testing.assert_close(network(conv="handmade")(images), expected, atol=1e-4, rtol=1e-4)


def test_a_transformer_for_other_images_is_found_before_training() -> None:
    config = ModelConfig(name="timm:vit_tiny_patch16_224", options={"depth": 1})
    with pytest.raises(UserError, match=r"images of 32x32 .*\(224\); choose another model, or enlarge .*image_size"):
        build_for(config, shape=(32, 32, 3), classes=10)
