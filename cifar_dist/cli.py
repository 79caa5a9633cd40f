"""``cifar-dist VERB``: words in, one call of the library, an exit code out.

Each verb imports what it needs when it runs, so that ``--help`` answers at once and a typo is found before torch
is loaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cifar_dist import __version__
from cifar_dist.errors import EXIT_DONE, UserError, nearest
from cifar_dist.world import is_main_process

_TTA = "views of each image: 0, mirror (2), translate (6) or a number of random views (default: the recipe's)"
_CHECKPOINT = "best, latest or a step (default: best)"


class _Parser(argparse.ArgumentParser):
    """argparse, with an error of one line that says what to type instead."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see: {self.prog} --help")


def run(words: Sequence[str]) -> int:
    """Run one verb; returns the exit code.

    Raises:
        UserError: words that are no command, or anything that the verb refuses.
    """
    if words and words[0] == "train":  # its settings are the config's, not argparse's
        return train(words[1:])
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        raise UserError(f"no command is called '{words[0]}'; {nearest(words[0], [*VERBS, 'train'])}")
    arguments = _parser().parse_args(words)
    work: Callable[[argparse.Namespace], int] = arguments.work
    return work(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cifar-dist",
        description="Distributed training of small-image classifiers: exact, elastic, hard to kill.",
        epilog="Any verb also runs on many processes: accelerate launch -m cifar_dist VERB ...",
    )
    parser.add_argument("--version", action="version", version=f"cifar-dist {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="VERB", required=True, parser_class=_Parser)
    for name, (work, help_text, add_arguments) in VERBS.items():
        verb = verbs.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        add_arguments(verb)
        verb.set_defaults(work=work)
    verbs.add_parser("train", help="train a recipe, or go on training it: train RECIPE [--section.field VALUE ...]")
    return parser


# ---- train ------------------------------------------------------------------------------------------------------

_TRAIN_USAGE = "usage: cifar-dist train RECIPE [--section.field VALUE ...]"


def train(words: Sequence[str]) -> int:
    """``train RECIPE [--section.field VALUE ...]``."""
    from cifar_dist import recipe

    asks_help = any(word in ("-h", "--help") for word in words)
    rest = [word for word in words if word not in ("-h", "--help")]
    if rest and rest[0].startswith("-"):
        raise UserError(f"the first word is the recipe, before its settings; {_TRAIN_USAGE}")
    if asks_help:
        return _train_help(rest)
    if not rest:
        raise UserError(f"which recipe? {', '.join(recipe.shipped())}, or the path of a .toml; {_TRAIN_USAGE}")
    config = recipe.load(rest[0], rest[1:])

    from cifar_dist.preemption import StopSignals

    with StopSignals() as signals:  # before torch is loaded: who asks during the start is heard too
        from cifar_dist.engine import Engine
        from cifar_dist.trainer import Trainer

        engine = Engine(
            config.train, clip_norm=config.optim.clip_norm, sam_rho=config.optim.sam_rho, processes=config.run.processes
        )
        try:
            code = Trainer(config, engine, signals).run()
        finally:
            engine.close()
    if code == EXIT_DONE and engine.is_main:
        _draw(Path(config.run.dir) / config.run.name)
    return code


def _train_help(rest: Sequence[str]) -> int:
    import tyro

    from cifar_dist import recipe
    from cifar_dist.config import Config

    if is_main_process():
        print(f"{_TRAIN_USAGE}\n\nRecipes: {', '.join(recipe.shipped())}, or the path of a .toml\n")
        default = recipe.load(rest[0]) if rest else Config()
        tyro.cli(Config, default=default, args=["--help"], prog="cifar-dist train RECIPE")
    return EXIT_DONE


def _draw(run_path: Path) -> None:
    """Draw the report; a picture that fails must not fail the run that it shows."""
    try:
        from cifar_dist.report.html import write_report

        print(f"report: {write_report(run_path)}")
    except Exception as error:
        print(f"cifar-dist: the report was not drawn ({error}); try: cifar-dist report {run_path}", file=sys.stderr)


# ---- data -------------------------------------------------------------------------------------------------------


def _pack_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source", help="a dataset's name or TOML (shards/NAME.toml), an archive, a folder or a file")
    verb.add_argument("out", type=Path, help="folder for the shards and their manifest")
    verb.add_argument("--codec", choices=["png", "raw"], default="png", help="how an image is stored (default: png)")
    verb.add_argument("--samples-per-shard", type=_at_least(1), default=1000, metavar="N", help="default: 1000")
    verb.add_argument("--val-fraction", type=_fraction, metavar="F", help="part of train kept for validation")
    verb.add_argument("--seed", type=_at_least(0), default=0, metavar="S", help="of the order and of the val split")
    verb.add_argument("--size", type=_at_least(1), metavar="N", help="resize every image to N x N pixels")


def _pack(arguments: argparse.Namespace) -> int:
    from cifar_dist.data.pack import pack

    manifest = pack(
        arguments.source,
        arguments.out,
        codec="npy" if arguments.codec == "raw" else "png",
        samples_per_shard=arguments.samples_per_shard,
        val_fraction=arguments.val_fraction,
        seed=arguments.seed,
        size=arguments.size,
    )
    counts = ", ".join(f"{manifest.samples(split)} {split}" for split in manifest.splits)
    print(f"packed {manifest.name} into {arguments.out}: {counts}, {len(manifest.classes)} classes")
    return EXIT_DONE


def _verify_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, help="a packed dataset")


def _verify(arguments: argparse.Namespace) -> int:
    from cifar_dist.data.verify import verify

    print(verify(arguments.folder))
    return EXIT_DONE


# ---- a trained run ----------------------------------------------------------------------------------------------


def _evaluate_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", help="name of a run, or its folder")
    verb.add_argument("--tta", help=_TTA)
    verb.add_argument("--data", type=Path, help="a packed dataset (default: the one it was trained on)")
    verb.add_argument("--split", default="test", help="default: test")
    verb.add_argument("--checkpoint", default="best", help=_CHECKPOINT)


def _evaluate(arguments: argparse.Namespace) -> int:
    from cifar_dist.data.manifest import Manifest
    from cifar_dist.engine import Engine
    from cifar_dist.evaluation.evaluate import evaluate
    from cifar_dist.evaluation.trained import find_run, load_model, open_trained

    run_path = find_run(arguments.run)
    trained = open_trained(run_path, arguments.checkpoint)
    tta = _checked_tta(arguments.tta, trained.config.eval.tta)
    data = Manifest.load(arguments.data or trained.config.data.path)
    engine = Engine(trained.config.train)
    try:
        engine.together(lambda: load_model(engine, trained))
        folder, summary = evaluate(
            engine,
            trained.config,
            run_path,
            trained.weights,
            data,
            arguments.split,
            tta,
            trained_on=trained.trained_on,
        )
    finally:
        engine.close()
    if engine.is_main:
        accuracy = "no labels" if summary.accuracy is None else f"accuracy {summary.accuracy:.2%}"
        print(f"{arguments.split}: {accuracy} on {summary.samples} samples, TTA {tta}, {summary.checkpoint}: {folder}")
        _draw(run_path)
    return EXIT_DONE


def _predict_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", help="name of a run, or its folder")
    verb.add_argument("unlabelled", type=Path, help="a pickle or npz with data and ids, or a packed dataset")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="where the ID,Labels rows go")
    verb.add_argument("--tta", help=_TTA)
    verb.add_argument("--checkpoint", default="best", help=_CHECKPOINT)


def _predict(arguments: argparse.Namespace) -> int:
    from cifar_dist.engine import Engine
    from cifar_dist.evaluation.predict_file import predict_file
    from cifar_dist.evaluation.trained import find_run, open_trained

    trained = open_trained(find_run(arguments.run), arguments.checkpoint)
    tta = _checked_tta(arguments.tta, trained.config.eval.tta)
    engine = Engine(trained.config.train)
    try:
        rows = predict_file(engine, trained, arguments.unlabelled, tta, arguments.out)
    finally:
        engine.close()
    if engine.is_main:
        print(f"{rows} predictions, TTA {tta}, {trained.weights.name}: {arguments.out}")
    return EXIT_DONE


def _checked_tta(asked: str | None, default: str) -> str:
    from cifar_dist.config import EvalConfig

    try:
        return EvalConfig(tta=asked or default).tta
    except ValueError as error:
        raise UserError(f"--{error}") from None


def _report_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", help="name of a run, or its folder")


def _report(arguments: argparse.Namespace) -> int:
    from cifar_dist.evaluation.trained import find_run
    from cifar_dist.report.html import write_report

    print(write_report(find_run(arguments.run)))
    return EXIT_DONE


# ---- argument types ---------------------------------------------------------------------------------------------


def _at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {least}")
        return int(text)

    return whole_number


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a fraction from 0 to below 1")
    return value


Verb = tuple[Callable[[argparse.Namespace], int], str, Callable[[argparse.ArgumentParser], None]]

VERBS: dict[str, Verb] = {
    "pack": (_pack, "pack a dataset into WebDataset shards and a manifest", _pack_arguments),
    "verify": (_verify, "check every byte of a packed dataset", _verify_arguments),
    "evaluate": (_evaluate, "evaluate a checkpoint of a run with test-time augmentation", _evaluate_arguments),
    "predict": (_predict, "predict an unlabelled set and write the ID,Labels file", _predict_arguments),
    "report": (_report, "draw a run's figures and its report.html", _report_arguments),
}
