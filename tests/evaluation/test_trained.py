"""A trained run that several ranks open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import forked_ranks
from support.engines import engine as start
from support.recorded import val, write_metrics
from support.small_checkpoint import save, save_in_parts

from cifar_dist import models
from cifar_dist.checkpoint import save_tensors
from cifar_dist.config import Config, ModelConfig, RunConfig, TrainConfig
from cifar_dist.data.manifest import Manifest
from cifar_dist.distributed.start import start_engine
from cifar_dist.errors import UserError
from cifar_dist.evaluation.checkpoint_ref import CheckpointRef
from cifar_dist.evaluation.evaluate import evaluate
from cifar_dist.evaluation.trained import Trained, agree_on_weights, load_model, open_trained
from cifar_dist.run_folder import EvaluationFolder, RunFolder
from cifar_dist.run_folder.settings import write_settings


@pytest.fixture
def trained(digits: Path, tmp_path: Path) -> list[Trained]:
    """The same run with the weights of two checkpoints."""
    config = Config(run=RunConfig("it"), model=ModelConfig("tiny-cnn"))
    manifest = Manifest.load(digits)
    found = []
    for step in (1, 2):
        torch.manual_seed(step)
        module = models.build_for(config.model, shape=manifest.shape, classes=len(manifest.classes))
        file = tmp_path / f"{step}.safetensors"
        save_tensors(module.state_dict(), file)
        weights = CheckpointRef((file,), f"step-{step}", step, None)
        found.append(Trained(RunFolder(tmp_path), config, manifest, weights))
    return found


def test_only_a_checkpoint_that_was_evaluated_itself_has_a_validation_accuracy(
    trained: list[Trained], tmp_path: Path
) -> None:
    """The state of the others has that of an earlier step."""
    run = RunFolder(tmp_path / "it")
    run.checkpoints.mkdir(parents=True)
    trained[0].trained_on.save(run.path)
    write_settings(run, trained[0].config)
    for step in (2, 3, 4, 6):
        save(run.checkpoints, step, best=step == 2)
    write_metrics(run.metrics, [val(0, accuracy=0.25), val(1)])
    found = {step: open_trained(run, step).weights.val_accuracy for step in ("2", "3", "4", "6", "best")}
    assert found == {"2": 0.5, "3": 0.25, "4": None, "6": 0.75, "best": 0.5}
    run.metrics.write_text("damaged\n")
    assert open_trained(run, "6").weights.val_accuracy is None


def test_a_damaged_checkpoint_at_a_path_is_refused(trained: list[Trained], tmp_path: Path) -> None:
    """Of which the tensors can be read, and are others."""
    run = RunFolder(tmp_path / "it")
    run.path.mkdir()
    trained[0].trained_on.save(run.path)
    write_settings(run, trained[0].config)
    path = save(tmp_path / "elsewhere", 3)
    weights = path / "averaged.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=rf"^--checkpoint: {path}: {weights.name} differs from what was saved"):
        open_trained(run, str(path))


def test_a_path_of_a_checkpoint_that_cannot_be_evaluated_is_answered_with_one_that_can(
    trained: list[Trained], tmp_path: Path
) -> None:
    """Not with the state of the optimizer, nor with a part of the weights."""
    run = RunFolder(tmp_path / "it")
    run.path.mkdir()
    trained[0].trained_on.save(run.path)
    write_settings(run, trained[0].config)
    in_parts, in_one = save_in_parts(tmp_path / "a", 3, 2), save(tmp_path / "b", 3)
    part = in_parts / "averaged-1-of-2.safetensors"
    with pytest.raises(UserError, match=rf"^--checkpoint: {part} is a part of a .*; give its folder, {in_parts}$"):
        open_trained(run, str(part))
    (in_parts / "state.json").unlink()
    with pytest.raises(UserError, match=r"; give a complete checkpoint or a file of weights$"):
        open_trained(run, str(in_parts))
    for file in ("averaged.safetensors", "averaged_statistics.safetensors", "COMPLETE.json"):
        (in_one / file).unlink()
    with pytest.raises(UserError, match=rf"; its weights are {in_one}/weights\.safetensors$"):
        open_trained(run, str(in_one))


def test_ranks_that_open_a_run_while_it_saves_load_the_weights_that_rank_0_chose(
    trained: list[Trained], tmp_path: Path
) -> None:
    def work() -> None:
        engine = start(trained[0].config)
        rank = engine.ranks.rank
        agreed = agree_on_weights(trained[rank], engine.ranks)
        bias = [*load_model(engine, agreed).module.parameters()][-1]
        (tmp_path / f"{rank}.txt").write_text(f"{agreed.weights.name} {bias.tolist()}")

    forked_ranks.run(2, work)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert first.startswith("step-1 ")


def test_a_checkpoint_that_its_run_deletes_while_it_is_evaluated_is_kept_with_the_evaluation(
    trained: list[Trained], digits: Path
) -> None:
    one = trained[0]
    (file,) = one.weights.files
    content = file.read_bytes()

    def delete() -> None:
        file.unlink(missing_ok=True)

    data = Manifest.load(digits)
    with start_engine(one.config, trains=False) as engine:
        model = load_model(engine, one)
        folder, _ = evaluate(
            model, one.config, one.run, one.weights, data, "val", trained_on=one.trained_on, poll=delete
        )
    assert not file.exists()
    assert EvaluationFolder(folder).weights.read_bytes() == content


def test_a_run_is_evaluated_without_what_only_its_training_needs(
    trained: list[Trained], capfd: pytest.CaptureFixture[str]
) -> None:
    """Compressed gradients need several processes, and fp16 a GPU."""
    needs = TrainConfig(compress_gradients="bf16", precision="fp16", threads=1)

    def work() -> None:
        with start_engine(replace(trained[0].config, train=needs), trains=False) as engine:
            assert engine.precision.name != "fp16"

    forked_ranks.run(1, work)
    assert capfd.readouterr().err == (
        "cifar-dist: the run was trained in fp16, which requires a GPU; evaluated as with --train.precision auto\n"
    )


def test_other_data_is_normalised_and_named_as_in_the_training(trained: list[Trained]) -> None:
    """Its classes have another order, and its pixels other statistics."""
    one, names = trained[0], tuple("abcdefghij")
    own = replace(one.trained_on, classes=names, source={"kind": "image-folder"})
    other = replace(own, classes=names[::-1], mean=(0.9,) * 3, std=(0.1,) * 3, splits={"test": own.splits["test"]})
    with start_engine(one.config, trains=False) as engine:
        model = load_model(engine, one)
        first, second = (
            EvaluationFolder(evaluate(model, one.config, one.run, one.weights, data, "test", trained_on=own)[0])
            for data in (own, other)
        )
    assert second.submission.read_bytes() == first.submission.read_bytes()
    assert first.submission.read_text().splitlines()[1].partition(",")[2] in names
    arrays = [np.load(folder.probabilities) for folder in (first, second)]
    assert np.array_equal(arrays[0]["probabilities"], arrays[1]["probabilities"])
    assert arrays[1]["labels"].tolist() == (9 - arrays[0]["labels"]).tolist()


def test_a_shard_that_one_machine_lacks_is_the_error_of_all_ranks(trained: list[Trained], tmp_path: Path) -> None:
    def work() -> None:
        engine = start(trained[0].config)
        one, data = trained[0], trained[0].trained_on
        here = replace(data, root=tmp_path / "empty") if engine.ranks.rank == 1 else data
        model = load_model(engine, one)
        with pytest.raises(UserError, match=r"empty/val-000000\.tar: cannot be opened \(No such file or directory\)"):
            evaluate(model, one.config, one.run, one.weights, here, "val", trained_on=data)

    forked_ranks.run(2, work)


def test_ranks_whose_machines_hold_different_weights_are_refused(trained: list[Trained], tmp_path: Path) -> None:
    def work() -> None:
        engine = start(trained[0].config)
        own = replace(trained[0], weights=trained[engine.ranks.rank].weights)
        with pytest.raises(UserError, match=r"the ranks have read different weights from .*; share that folder"):
            load_model(engine, own)

    forked_ranks.run(2, work)
