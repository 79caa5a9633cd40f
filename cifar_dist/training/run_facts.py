"""What a training tells its trackers about itself, beside its config."""

from __future__ import annotations

from cifar_dist.distributed.engine import Engine
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.training.setup import TrainingSetup


def facts_of(setup: TrainingSetup, engine: Engine, val_samples: int) -> RunFacts:
    """Return the facts of a run on this process; ``val_samples`` is 0 if it does not validate."""
    config, manifest, ranks = setup.config, setup.manifest, engine.ranks
    return RunFacts(
        model=config.model.name,
        parameters=setup.parameters,
        dataset=manifest.name,
        fingerprint=manifest.fingerprint,
        classes=len(manifest.classes),
        image_shape=manifest.shape,
        train_samples=len(setup.batches.images),
        val_samples=val_samples,
        processes=ranks.world_size,
        wrapper=engine.description,
        device=engine.device_name,
        precision=engine.arithmetic,
        steps_per_epoch=setup.steps_per_epoch,
        epochs=config.train.epochs,
        max_steps=config.train.max_steps,
        threads=engine.cpu_threads,
    )
