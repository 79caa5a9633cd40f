"""Geometric operations against torchvision, each sample with its own parameters.

The pixels must be the same except where a source lies on the border of two pixels: there float32 decides, and the two
add in different orders. A source is on the border when, in float64, it is within 1e-3 pixels of it.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_images import assert_unrelated, images
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference
from torchvision.transforms.v2.functional._geometry import _get_inverse_affine_matrix

from cifar_dist.data.operations.geometry import affine, perspective, perspective_coefficients
from cifar_dist.data.transforms import Samples
from cifar_dist.data.transforms.affine import Affine
from cifar_dist.data.transforms.perspective import Perspective

HEIGHT, WIDTH = 14, 11


def near_border(x: Tensor, y: Tensor) -> Tensor:
    """bool [h, w] of float64 sources: within 1e-3 of the border of two pixels, or of the image."""
    return torch.stack([((place - 0.5) - (place - 0.5).round()).abs() < 1e-3 for place in (x, y)]).any(dim=0)


def middles() -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(
        torch.arange(HEIGHT, dtype=torch.float64), torch.arange(WIDTH, dtype=torch.float64), indexing="ij"
    )
    return x, y


def affine_sources(
    angle: float, translate: list[float], scale: float, shear: list[float], center: list[float] | None
) -> tuple[Tensor, Tensor]:
    off_center = [0.0, 0.0] if center is None else [center[0] - WIDTH / 2, center[1] - HEIGHT / 2]
    m = _get_inverse_affine_matrix(off_center, angle, translate, scale, shear)
    x, y = middles()
    x, y = x - (WIDTH - 1) / 2, y - (HEIGHT - 1) / 2
    return m[0] * x + m[1] * y + m[2] + (WIDTH - 1) / 2, m[3] * x + m[4] * y + m[5] + (HEIGHT - 1) / 2


def assert_same(result: Tensor, expected: Tensor, border: Tensor) -> None:
    differs = (result != expected).any(dim=0) & ~border
    assert not differs.any(), f"{int(differs.sum())} pixels differ away from a border"


ANGLES = st.floats(-400, 400, width=32) | st.sampled_from([0.0, 45.0, 90.0, 180.0, 270.0])
SHEARS = st.floats(-60, 60, width=32)
PIXELS = st.floats(-9, 9, width=32) | st.integers(-9, 9).map(float)
AFFINE = st.tuples(
    ANGLES,
    st.lists(PIXELS, min_size=2, max_size=2),
    st.floats(0.25, 3, width=32),
    st.lists(SHEARS, min_size=2, max_size=2),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(AFFINE, min_size=1, max_size=5), st.sampled_from([(0,), (200,), (9, 80, 255)]), st.booleans())
def test_affine_is_torchvisions(
    parameters: list[tuple[float, list[float], float, list[float]]], fill: tuple[int, ...], corner: bool
) -> None:
    batch = images(len(parameters), HEIGHT, WIDTH)
    angle, translate, scale, shear = (torch.tensor(column) for column in zip(*parameters, strict=True))
    center = torch.zeros(len(batch), 2) if corner else None
    result = affine(batch, angle=angle, translate=translate, scale=scale, shear=shear, center=center, fill=fill)
    assert result.dtype == torch.uint8
    for row, (a, t, s, sh) in enumerate(parameters):
        at = [0.0, 0.0] if corner else None
        expected = reference.affine(batch[row], a, t, s, sh, fill=list(map(float, fill)), center=at)
        assert_same(result[row], expected, near_border(*affine_sources(a, t, s, sh, at)))


@settings(deadline=None, max_examples=40)
@given(st.lists(ANGLES, min_size=1, max_size=5))
def test_a_negative_angle_is_torchvisions_rotation(angles: list[float]) -> None:
    batch = images(len(angles), HEIGHT, WIDTH)
    result = affine(batch, angle=-torch.tensor(angles))
    for row, angle in enumerate(angles):
        border = near_border(*affine_sources(-angle, [0.0, 0.0], 1.0, [0.0, 0.0], None))
        assert_same(result[row], reference.rotate(batch[row], angle), border)


def test_a_quarter_turn_moves_every_pixel_and_loses_none() -> None:
    square = images(8, 12, 12)
    for quarter in range(4):
        turned = affine(square, angle=torch.full((8,), -90.0 * quarter))
        assert torch.equal(turned, square.rot90(quarter, dims=(2, 3)))


def test_no_parameters_change_nothing() -> None:
    batch = images(7, channels=1)
    result = affine(batch)
    assert torch.equal(result, batch)
    assert result.data_ptr() != batch.data_ptr()


def has_three_on_a_line(corners: Tensor) -> bool:
    """Whether three of four points, int64 [4, 2], are on a line."""
    for three in itertools.combinations(corners.tolist(), 3):
        (x0, y0), (x1, y1), (x2, y2) = three
        if (x1 - x0) * (y2 - y0) == (x2 - x0) * (y1 - y0):
            return True
    return False


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 2**31 - 1), st.integers(0, 100), st.floats(0, 0.9))
def test_perspective_is_torchvisions(data: st.DataObject, seed: int, epoch: int, distortion: float) -> None:
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=5)))
    batch = images(len(ids), HEIGHT, WIDTH)
    start, end = Perspective(distortion=distortion).corners(Samples(seed, epoch, ids), HEIGHT, WIDTH)
    coefficients = perspective_coefficients(start.expand_as(end), end)
    result = perspective(batch, coefficients, fill=(7, 8, 9))
    for row in range(len(ids)):
        if has_three_on_a_line(end[row]) or not coefficients[row, -1]:
            continue  # there is no such map, or torchvision cannot write it: both are approximated there
        expected = reference.perspective(
            batch[row],
            start.tolist(),
            end[row].tolist(),
            interpolation=v2.InterpolationMode.NEAREST,
            fill=[7.0, 8.0, 9.0],
        )
        a, b, c, d, e, f, g, h, i = coefficients[row].tolist()
        x, y = (places + 0.5 for places in middles())
        depth = g * x + h * y + i
        border = near_border((a * x + b * y + c) / depth - 0.5, (d * x + e * y + f) / depth - 0.5)
        assert_same(result[row], expected, border)


def test_a_horizon_through_the_origin_moves_corners_to_corners() -> None:
    start = torch.tensor([[[0, 0], [10, 0], [10, 13], [0, 13]]])
    end = torch.tensor([[[3, 4], [10, 1], [10, 11], [3, 7]]])
    coefficients = perspective_coefficients(start, end)[0].view(3, 3)
    assert coefficients[2, 2] == 0
    for source, place in zip(start[0].double(), end[0].double(), strict=True):
        x, y, depth = coefficients @ torch.cat([place, torch.ones(1)]).double()
        assert (x / depth, y / depth) == pytest.approx(source.tolist())


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0, 1), st.integers(2, 40), st.integers(2, 40))
def test_corners_stay_in_torchvisions_range(seed: int, distortion: float, height: int, width: int) -> None:
    _, end = Perspective(distortion=distortion).corners(Samples(seed, 0, torch.arange(50)), height, width)
    far_x, far_y = int(distortion * (width // 2)), int(distortion * (height // 2))
    x, y = end.unbind(2)
    assert x[:, [0, 3]].min() >= 0
    assert x[:, [0, 3]].max() <= far_x
    assert x[:, [1, 2]].min() >= width - 1 - far_x
    assert x[:, [1, 2]].max() <= width - 1
    assert y[:, [0, 1]].max() <= far_y
    assert y[:, [2, 3]].min() >= height - 1 - far_y


def test_corners_move_independently() -> None:
    _, end = Perspective(distortion=1.0).corners(Samples(0, 0, torch.arange(4000)), 32, 32)
    assert_unrelated(end.flatten(1).to(torch.float32))


def test_corners_that_coincide_raise_nothing() -> None:
    """With a distortion of 1 two corners may coincide, and all corners of an image of one pixel do."""
    for size in (1, 2, 4):
        batch = images(500, size, size)
        assert Perspective(distortion=1.0, p=1.0)(batch, Samples(0, 0, torch.arange(500))).shape == batch.shape


def test_affine_parameters_fill_torchvisions_ranges() -> None:
    transform = Affine(rotation=30, translate=0.25, scale=(0.5, 2), shear=10)
    angle, translate, scale, shear = transform.parameters(Samples(1, 2, torch.arange(4000)), height=20, width=40)
    assert torch.equal(translate, translate.round())
    ranges = [(angle, -30, 30), (translate[:, 0], -10, 10), (translate[:, 1], -5, 5), (scale, 0.5, 2)]
    for values, low, high in [*ranges, (shear[:, 0], -10, 10), (shear[:, 1], -10, 10)]:
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
        spread = (high - low) / math.sqrt(12 * 4000)
        assert abs(float(values.mean()) - (low + high) / 2) < 6 * spread
    assert_unrelated(torch.cat([angle[:, None], translate, scale[:, None], shear], dim=1))


def test_random_affine_applies_its_parameters() -> None:
    batch, samples = images(9), Samples(3, 4, torch.arange(50, 59), fill=(1, 2, 3))
    transform = Affine(rotation=30, translate=0.2, scale=(0.7, 1.4), shear=10)
    angle, translate, scale, shear = transform.parameters(samples, HEIGHT, WIDTH)
    expected = affine(batch, angle=angle, translate=translate, scale=scale, shear=shear, fill=(1, 2, 3))
    assert torch.equal(transform(batch, samples), expected)


def test_perspective_is_applied_with_its_probability() -> None:
    batch = images(1).expand(2000, -1, -1, -1)
    samples = Samples(0, 0, torch.arange(2000))
    changed = (Perspective(distortion=0.9, p=0.3)(batch, samples) != batch).flatten(1).any(dim=1)
    assert abs(int(changed.sum()) - 600) < 6 * math.sqrt(2000 * 0.3 * 0.7)
    assert torch.equal(Perspective(distortion=0.9, p=0)(batch, samples), batch)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (lambda: Affine(), "rotation, translate, scale and shear are all off"),
        (lambda: Affine(rotation=-1), "rotation -1 must not be negative"),
        (lambda: Affine(translate=1.5), "translate 1.5"),
        (lambda: Affine(scale=(0, 1)), r"scale \[0, 1\]"),
        (lambda: Affine(scale=(2, 1)), r"scale \[2, 1\]"),
        (lambda: Affine(shear=90), "shear 90"),
        (lambda: Perspective(distortion=1.5), "distortion 1.5"),
        (lambda: Perspective(p=-0.5), "p -0.5"),
    ],
)
def test_invalid_ranges_are_refused(wrong: object, word: str) -> None:
    assert callable(wrong)
    with pytest.raises(ValueError, match=f"^{word}"):
        wrong()
