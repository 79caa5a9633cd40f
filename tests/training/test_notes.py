"""What is said of a run before it trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from support.small_packed import small_packed, with_val

from cifar_dist.config import AverageConfig, Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from cifar_dist.config.average import EMAConfig, LookaheadConfig, SWAConfig
from cifar_dist.distributed.start import start_engine
from cifar_dist.training.notes import (
    average_note,
    batch_note,
    evaluation_note,
    parts_note,
    size_note,
)
from cifar_dist.training.setup import build_setup


def test_a_run_that_will_not_be_evaluated_says_what_to_type(tmp_path: Path) -> None:
    with_test = with_val(small_packed(tmp_path, "npy"), labelled=True)
    splits = {name: shards for name, shards in with_test.splits.items() if name != "test"}
    trained_on_val = Config(data=DataConfig(hold_out=False))
    assert evaluation_note(Config(), with_test) == ""
    for config, found, remedy in (
        (Config(), splits, "use --eval.split val"),
        (trained_on_val, splits, "use --data.hold_out true --eval.split val"),
        (Config(), {"train": splits["train"]}, "hold one out when it is packed"),
        (
            Config(eval=EvalConfig(split="val")),
            {name: with_test.splits[name] for name in ("train", "test")},
            "use --eval.split test",
        ),
    ):
        said = evaluation_note(config, replace(with_test, splits=found))
        assert said == f"the dataset has no split '{config.eval.split}' to end with; {remedy}"


def test_a_batch_that_is_larger_than_the_training_split_is_reported() -> None:
    config = Config(train=TrainConfig(batch_size=2000))
    assert batch_note(config, 2000) == ""
    said = "train.batch_size 2,000 is more than the 120 training samples: each epoch is one step on all"
    assert batch_note(config, 120) == said


def test_images_that_the_network_sees_smaller_are_reported(tmp_path: Path) -> None:
    manifest = replace(small_packed(tmp_path, "npy"), shape=(32, 24, 3))
    for side in (0, 32, 64):
        assert size_note(Config(model=ModelConfig(image_size=side)), manifest) == ""
    said = "model.image_size 24 shrinks the images of 24x32; --model.image_size 0 keeps their size"
    assert size_note(Config(model=ModelConfig(image_size=24)), manifest) == said


def test_parts_on_a_gpu_without_deterministic_kernels_are_noted() -> None:
    config = Config(train=TrainConfig(parts=2))
    assert "only with deterministic kernels; a new run with --train.deterministic true" in parts_note(config, "cuda")
    assert parts_note(config, "cpu") == ""
    assert parts_note(Config(train=TrainConfig(parts=2, deterministic=True)), "cuda") == ""
    assert parts_note(Config(), "cuda") == ""


def test_an_average_that_forgets_too_slowly_or_has_no_update_is_reported(tmp_path: Path) -> None:
    data = DataConfig(path=str(small_packed(tmp_path, "npy").root))
    config = Config(data=data, model=ModelConfig("tiny-cnn"), train=TrainConfig(batch_size=13, epochs=16, threads=1))
    with start_engine(config) as engine:

        def note(average: AverageConfig, *, has_begun: bool = False, epochs: int = 16) -> str:
            train = replace(config.train, epochs=epochs)
            setup = build_setup(replace(config, average=average, train=train), engine.ranks)
            return average_note(setup.config, setup.steps_per_epoch, has_begun=has_begun)

        assert note(EMAConfig()).startswith("92 % of the average will be the weights before the first step: ")
        assert note(EMAConfig()).endswith("is too slow for 80 steps; use --average.decay 0.944 or less")
        assert not note(EMAConfig(decay=0.944))
        assert not note(EMAConfig(), has_begun=True), "a resume cannot change it"
        assert not note(SWAConfig())
        assert note(SWAConfig(every=20)) == (
            "20 % of the average will be the weights before the first step, for it has 4 updates in 80 steps; "
            "use --average.start 1"
        )
        assert not note(SWAConfig(every=20, start=1))
        assert note(SWAConfig(every=5), epochs=1).endswith(
            "1 update in 5 steps; use --average.start 0.5 --average.every 1"
        )
        assert note(SWAConfig(), epochs=1).endswith("5 updates in 5 steps; use --average.start 0.5")
        assert not note(SWAConfig(start=0.5), epochs=1)
        assert not note(LookaheadConfig(every=20)), "its network has the average's weights itself"
        for start, first, weights in (
            (0, 100, "weights before the first step"),
            (1, 105, "weights after step 5"),
            (15.9, 180, "last weights"),
        ):
            assert note(SWAConfig(start=start, every=100)) == (
                f"the average is first updated after step {first} (average.start {start}, average.every 100), and the "
                f"run ends after step 80: the {weights} are evaluated and kept"
            )
