"""Networks by name: which are accepted, which are refused, and what the trainer requires of each."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_dist.config import ModelConfig, OptionValue
from cifar_dist.errors import UserError
from cifar_dist.models import build, build_for, check_fits, try_build
from cifar_dist.models.registry import DataInitialized, names

# Options that make a network small enough for a test; the others are as they are.
SMALL: dict[str, dict[str, OptionValue]] = {
    "speed-net-96": {"widths": [32, 64, 64]},
    "wrn-16-8": {"width": 1},
    "wrn-28-10": {"width": 1},
}


def test_names_are_listed_without_importing_torch() -> None:
    code = (
        "import sys, cifar_dist.models.registry as m; assert 'speed-net' in m.names(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", names())
def test_every_network_gives_every_trainable_parameter_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, classes=7, channels=1, options=SMALL.get(name, {})).to(memory_format=torch.channels_last)
    images = torch.randn(4, 1, 32, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
        loss = F.cross_entropy(logits, torch.arange(4))
    loss.backward()
    assert logits.shape == (4, 7)
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
        assert parameter.grad is None or parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", names())
def test_weights_are_a_function_of_the_seed_and_survive_a_state_dict(name: str) -> None:
    def fresh(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build(name, classes=3, options=SMALL.get(name, {})).eval()

    first, again, other = fresh(1), fresh(1), fresh(2)
    weights = first.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in again.state_dict().items())
    image = torch.randn(1, 3, 32, 32)
    assert not torch.equal(first(image), other(image))
    other.load_state_dict(weights)
    assert torch.equal(first(image), other(image))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("sped-net", {}, "did you mean 'speed-net'?"),
        ("../../etc/passwd", {}, "known: custom-resnet"),
        ("os", {}, "unknown model 'os'"),
        ("speed-net", {"width": [1, 2, 3]}, "did you mean 'widths'?"),
        ("speed-net", {"classes": 3}, "speed-net has no option 'classes'"),
        ("speed-net", {"widths": [64, "256", 256]}, "model.options.widths[1] of speed-net"),
        ("speed-net", {"widths": [64, 256]}, "model.options.widths[2] of speed-net"),
        ("speed-net", {"widths": 64}, "Input should be a valid list"),
        ("speed-net", {"whiten": 1}, "Input should be a valid boolean"),
        ("speed-net", {"whiten_bias": False, "whiten_gain": 8.0}, "whiten_gain has no effect without whiten_bias"),
        ("speed-net", {"whiten_bias": False, "whiten_bias_share": 0.5}, "whiten_bias_share has no effect unless"),
        ("speed-net-96", {"whiten": False, "whiten_bias_share": 0.5}, "whiten_bias_share has no effect unless"),
        ("speed-net", {"whiten_bias_share": 0.0}, "greater than 0"),
        ("speed-net", {"whiten_directions": 13}, "whiten_directions is 13, but images have 12; 0 uses all"),
        ("speed-net", {"scale": float("nan")}, "Input should be a finite number"),
        ("resnet18", {"freeze": True}, "resnet18 has no option 'freeze'"),
        ("preact-resnet18", {"stem": "cifar"}, "preact-resnet18 has no option 'stem'; it has no options"),
        ("custom-resnet", {"width": 64}, "custom-resnet has no option 'width'; known: dropout, pairs"),
        ("small-resnet", {"widths": [10**9]}, "less than or equal to 4096"),
        ("small-resnet", {"widths": [], "blocks": []}, "widths and blocks must have the same length"),
        ("small-resnet", {"blocks": [2, 2]}, "widths and blocks must have the same length"),
        ("small-resnet", {"kernels": [2, 2]}, "Input should be 1, 3, 5 or 7"),
        ("small-resnet", {"kernels": []}, "kernels must have at least one entry"),
        ("small-resnet", {"pool": 3}, "pool 3 does not divide the last map, which is 8x8"),
        ("small-resnet", {"pool": 64}, "pool 64 does not divide"),
        ("small-resnet", {"extra_conv": -1}, "greater than or equal to 0"),
        ("small-resnet", {"dropout": [0.1, 0.1]}, "dropout must be empty or have 1 entry"),
        ("small-resnet", {"dropout": [1.0]}, "less than 1"),
    ],
)
def test_bad_names_and_options_are_refused_in_one_line(name: str, options: dict[str, OptionValue], says: str) -> None:
    with pytest.raises(UserError) as caught:
        build(name, classes=10, options=options)
    message = str(caught.value)
    assert says in message
    assert message.startswith("model.")
    assert "\n" not in message


def test_a_network_that_does_not_fit_the_images_is_found_before_training() -> None:
    model = build("speed-net", classes=10, options={"widths": [4, 4, 4]})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_fits(model, "speed-net", shape=(9, 32, 3), classes=10)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(UserError, match="speed-net cannot take images of 8x8 with 3 channels"):
        check_fits(model, "speed-net", shape=(8, 8, 3), classes=10)
    with pytest.raises(UserError, match="cannot take images of 32x32 with 1 channel:"):
        check_fits(model, "speed-net", shape=(32, 32, 1), classes=10)
    says = r"does not return one logit for each of 9 classes: for one image it returned torch\.float32 \[1, 10\]; "
    with pytest.raises(UserError, match=says):
        check_fits(model, "speed-net", shape=(32, 32, 3), classes=9)


def test_an_error_of_a_plug_in_on_an_image_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, classes, channels):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(10, classes))\n\n"
        "    def forward(self, x):\n"
        "        return super().forward(x)\n"
    )
    with pytest.raises(UserError) as caught:
        build_for(ModelConfig(name=f"{path}:Net"), shape=(32, 32, 3), classes=10)
    message = str(caught.value)
    assert f"cannot take images of 32x32 with 3 channels: the plug-in {path}, line 8, raised RuntimeError: " in message
    assert "choose another model" not in message, "it is the user's own"


def test_an_error_of_a_plug_in_that_builds_a_network_names_its_line(tmp_path: Path) -> None:
    """It has no options to correct."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\n\n"
        "def net(classes, channels):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 12, 3), nn.GroupNorm(8, 12))\n"
    )
    with pytest.raises(UserError) as caught:
        try_build(ModelConfig(name=f"{path}:net"), shape=(32, 32, 3), classes=10)
    failed = f"model.name: {path}:net cannot be built: the plug-in {path}, line 4, raised ValueError: num_channels"
    assert str(caught.value).startswith(failed)


def test_a_network_is_tried_on_images_of_the_size_that_it_will_get() -> None:
    config = ModelConfig(name="speed-net", options={"widths": [4, 4, 4]})
    with pytest.raises(UserError, match=r"images of 8x8 .* enlarge the images with --model\.image_size"):
        build_for(config, shape=(8, 8, 3), classes=10)
    build_for(replace(config, image_size=9), shape=(8, 8, 3), classes=10)


def test_only_networks_that_need_data_are_initialized_from_it() -> None:
    assert isinstance(build("speed-net", classes=2, options={}), DataInitialized)
    assert not isinstance(build("tiny-cnn", classes=2, options={}), DataInitialized)


# ---- from outside ------------------------------------------------------------------------------------------------

OUTSIDE = """
from __future__ import annotations
from dataclasses import dataclass
from functools import partial
import torch
from torch import nn

def net(classes: int, channels: int, *, width: int = 8, slope: float = 0.1):
    return nn.Sequential(nn.Conv2d(channels, width, 3), nn.LeakyReLU(slope), nn.Flatten(), nn.LazyLinear(classes))

class Net(nn.Sequential):
    def __init__(self, classes: int, channels: int, *, width: int = 8, untyped=1) -> None:
        super().__init__(nn.Conv2d(channels, width, 8), nn.Flatten(), nn.Linear(width, classes))

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x

class Rates(Net):
    def __init__(self, classes: int, channels: int, *, rate: float = 0.1) -> None:
        super().__init__(classes, channels)
        self.rates = [one.item() for one in torch.linspace(0, rate, 3)]

    def forward(self, x):
        return super().forward(x) if x.mean() == 0 else None

class Listed(Net):
    def __init__(
        self, classes: int, channels: int, *, widths: list[int] = [8], pairs: list[tuple[int, float]] = [], untyped=()
    ) -> None:
        super().__init__(classes, channels)
        self.given = widths, pairs, untyped

@dataclass
class Family:
    width: str = "the hint of a field, not that of the option"

    def __call__(self, classes: int, channels: int, *, width: int = 8) -> nn.Module:
        return Net(classes, channels, width=width)

narrow = partial(partial(Net, width=4), untyped=2)
family = Family()
part_of_family = partial(family, width=3)

class Extra(Net):
    def get_extra_state(self):
        return {"calls": 1}

def frozen(classes: int, channels: int): return Net(classes, channels).requires_grad_(False)
instance = Net(4, 3)

def odd(classes: int) -> nn.Module: ...
def nothing(classes: int, channels: int): net(classes, channels)
def empty(classes: int, channels: int): return nn.Flatten()
def unreadable(classes: int, channels: int, *, width: Missing = 3) -> nn.Module: ...
def misspelt(classes: int, channels: int, *, width: nn.Sized = 3) -> nn.Module: ...
def unlisted(classes: int, channels: int, *, dtype: torch.dtype = torch.float32) -> nn.Module: ...
constant = 3
"""


@pytest.fixture
def outside(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(OUTSIDE)
    return str(tmp_path / "nets.py")


def test_a_network_from_a_file(outside: str) -> None:
    model = build(f"{outside}:Net", classes=4, channels=1, options={"width": 5, "untyped": "x"})
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert build(f"{outside}:net", classes=4, options={"slope": 1})[1].negative_slope == 1.0  # type: ignore[index]


def test_a_list_has_the_type_that_the_network_asks_for(outside: str) -> None:
    options: dict[str, OptionValue] = {"widths": [16, 32], "pairs": [[1, 2]], "untyped": [[3]]}
    model = build(f"{outside}:Listed", classes=4, options=options)
    assert repr(model.given) == "([16, 32], [(1, 2.0)], ((3,),))"


@pytest.mark.parametrize(("attribute", "width"), [("narrow", 4), ("family", 8), ("part_of_family", 3)])
def test_a_network_that_a_partial_function_or_an_object_builds(outside: str, attribute: str, width: int) -> None:
    for options, channels in (({}, width), ({"width": 5}, 5)):
        model = build(f"{outside}:{attribute}", classes=4, options=options)
        assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
        assert model[0].out_channels == channels  # type: ignore[index]
    with pytest.raises(UserError, match=r"model\.options\.width of .* is 'wide': Input should be a valid integer"):
        build(f"{outside}:{attribute}", classes=4, options={"width": "wide"})


@pytest.mark.parametrize(
    ("attribute", "options", "says"),
    [
        ("Nett", {}, "nets.py has no 'Nett'; did you mean 'Net'?"),
        ("Net", {"widht": 3}, "Net has no option 'widht'; did you mean 'width'?"),
        ("Net", {"width": "wide"}, "model.options.width of"),
        ("Listed", {"widths": [8, "x"]}, "Listed is [8, 'x']: Input should be a valid integer"),
        ("Listed", {"widths": 8}, "Listed is 8: Input should be a valid list"),
        ("Listed", {"pairs": [[1, 2, 3]]}, "Listed is [[1, 2, 3]]: List should have at most 2 items"),
        ("odd", {}, "odd does not build a network; write it as odd(classes, channels, *, option=default, ...)"),
        ("constant", {}, "constant does not build a network"),
        ("nothing", {}, "nothing returned NoneType; return a torch.nn.Module that can learn"),
        ("empty", {}, "empty returned a network without parameters; return a torch.nn.Module"),
        ("frozen", {}, "frozen returned a network whose parameters all have requires_grad False; return a torch.nn"),
        ("instance", {}, "instance is a network; write it as instance(classes, channels, *, option=default, ...)"),
        (
            "Extra",
            {},
            "Extra has _extra_state in its state_dict, of the type dict, and a checkpoint holds tensors; return a "
            "tensor from get_extra_state",
        ),
        ("unreadable", {"width": 3}, "cannot be read: name 'Missing' is not defined"),
        ("misspelt", {"width": 3}, "cannot be read: module 'torch.nn' has no attribute 'Sized'"),
        ("unlisted", {"dtype": "float64"}, "unlisted has a type that a recipe cannot contain; remove it, or set"),
    ],
)
def test_a_mistake_in_a_network_from_a_file_is_one_line(
    outside: str, attribute: str, options: dict[str, OptionValue], says: str
) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        build(f"{outside}:{attribute}", classes=4, options=options)
    assert "\n" not in str(caught.value)


def test_a_network_that_reads_numbers_can_be_built_as_it_can_be_trained(outside: str) -> None:
    """As stochastic depth does, whose rates many networks take from a tensor; the meta device has no numbers."""
    try_build(ModelConfig(name=f"{outside}:Rates"), shape=(8, 8, 3), classes=4)
    with pytest.raises(UserError, match="cannot take images of 7x7 with 3 channels: "):
        try_build(ModelConfig(name=f"{outside}:Rates"), shape=(7, 7, 3), classes=4)
    with pytest.raises(UserError, match="4 classes: for one image it returned tuple; return float"):
        try_build(ModelConfig(name=f"{outside}:Pair"), shape=(8, 8, 3), classes=4)
