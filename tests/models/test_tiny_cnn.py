"""The network of the exactness tests must itself be exact."""

from __future__ import annotations

import torch

from cifar_dist.models import build


def test_an_output_does_not_depend_on_other_images() -> None:
    """No batch statistics: in training mode too, an output depends on no other image of the batch."""
    model = build("tiny-cnn", classes=10, options={})
    images = torch.randn(6, 3, 32, 32)
    torch.testing.assert_close(model(images)[:2], model(images[:2]))
    assert not list(model.buffers())


def test_images_of_any_size_are_classified() -> None:
    model = build("tiny-cnn", classes=3, channels=1, options={"dropout": 0.5})
    for side in (1, 8, 28):
        assert model(torch.randn(2, 1, side, side)).shape == (2, 3)
