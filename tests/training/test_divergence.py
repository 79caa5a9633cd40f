"""A training that diverges ends, and says where it did, what is kept of it and what may help."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import forked_ranks
from support.continued_runs import STEPS, Place, events
from support.failing_network import write_network

from cifar_dist import recipe
from cifar_dist.config import Config
from cifar_dist.config.optim import SGDConfig
from cifar_dist.distributed.loss_scaler import LossScaler
from cifar_dist.distributed.start import start_engine
from cifar_dist.errors import TrainingFailedError
from cifar_dist.run_folder import RunFolder
from cifar_dist.training.divergence import divergence_error
from cifar_dist.training.trainer import Trainer

INPUTS = "32 * 32 * channels"


@pytest.mark.parametrize("step", [2, STEPS], ids=["before a save", "before an evaluation"])
def test_the_samples_of_a_loss_that_is_not_finite_are_named_before_anything_else_fails(
    place: Place, tmp_path: Path, step: int
) -> None:
    network = write_network(tmp_path / "net.py", "images = images * float('nan')", step=step, inputs=INPUTS)
    run = place.runs / f"diverged-{step}"
    place.train(run.name, "--model.name", network)
    kind, _, note = events(run)[-1]
    assert kind == "failed"
    assert note.startswith(f"the loss is not finite at step {step} for ")


@pytest.mark.parametrize("on_error", ["warn", "stop"])
def test_a_checkpoint_that_cannot_be_saved_meanwhile_is_reported(place: Place, tmp_path: Path, on_error: str) -> None:
    run = place.runs / f"diverged-on-a-full-disk-{on_error}"
    checkpoints = str(run / "checkpoints")
    block = f"import shutil; shutil.rmtree({checkpoints!r}); open({checkpoints!r}, 'w').close()"
    diverge = "type(self).forward = lambda self, images: nn.Linear.forward(self, images.flatten(1)) * float('nan')"
    network = write_network(tmp_path / "net.py", f"{block}; {diverge}", step=2, inputs=INPUTS)
    place.train(run.name, "--model.name", network, "--checkpoint.on_error", on_error)
    *_, warning, end = (run / "training.log").read_text().splitlines()
    assert "could not be saved: " in warning
    assert "training continues" not in warning
    assert "the loss is not finite at step 3" in end


def test_a_validation_loss_that_is_not_finite_ends_the_run(place: Place, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        f"    def __init__(self, classes, channels):\n        super().__init__({INPUTS}, classes)\n"
        "    def forward(self, images):\n"
        "        return super().forward(images.flatten(1)) * (1 if self.training else float('nan'))\n"
    )
    run = place.runs / "not-a-number"
    place.train(run.name, "--model.name", f"{tmp_path}/net.py:Net")
    _, _, note = events(run)[-1]
    assert note.startswith(f"the validation loss is not finite after step {STEPS}; step-00000002 is intact. Try ")
    assert not (run / "checkpoints" / "best").is_symlink()


def test_a_run_whose_gradients_overflow_at_any_scale_ends(tiny: Path) -> None:
    """In fp16, in which no update would change the weights any more."""
    config = recipe.load(str(tiny), ["--train.max_steps", "2"])

    def work() -> None:
        with start_engine(config) as engine:
            engine.accelerator.scaler = LossScaler("cpu", init_scale=1e-5)
            with pytest.raises(TrainingFailedError, match=r"^every gradient in fp16 is not finite after step 2; "):
                Trainer(config, engine).run()

    forked_ranks.run(1, work)


@pytest.mark.parametrize(
    ("clip_norm", "autocast", "remedies"),
    [
        (0.0, False, "a lower --optim.lr, or --optim.clip_norm 1"),
        (5.0, False, "a lower --optim.lr, or --optim.clip_norm 1"),
        (1.0, False, "a lower --optim.lr"),
        (0.5, True, "a lower --optim.lr, or --train.precision no"),
    ],
)
def test_settings_that_a_run_has_already_are_not_proposed(
    tmp_path: Path, clip_norm: float, autocast: bool, remedies: str
) -> None:
    config = Config(optim=SGDConfig(clip_norm=clip_norm))
    error = divergence_error("the loss is not finite", config, RunFolder(tmp_path), autocast=autocast)
    assert str(error) == f"the loss is not finite; no checkpoint was saved before. Try {remedies}"
