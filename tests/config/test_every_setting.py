"""Settings that cannot lie: every key of every section and of every choice has an effect, or is refused.

A key without a witness in tests/support/witnesses.py fails the test, so that a new one comes with its proof.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from support.observations import die, final_weights, mirror, pack_colours, run
from support.witnesses import WITNESSES

from cifar_dist.config import Config
from cifar_dist.config.build import build_config
from cifar_dist.config.changes import CHANGEABLE_ON_RESUME
from cifar_dist.config.choice import field_names, is_root, keys_of, leaves
from cifar_dist.config.section import key_of
from cifar_dist.config.tree import Tree, put
from cifar_dist.errors import UserError

Settings = dict[str, object]


def choices() -> Iterator[tuple[str, Settings, type]]:
    """Yield (section, selecting key, dataclass) of every section and every variant."""
    for section, hint in ((field.name, get_type_hints(Config)[field.name]) for field in fields(Config)):
        variants: Iterable[tuple[Mapping[str, object], type]] = leaves(hint) if is_root(hint) else [({}, hint)]
        yield from ((section, {**picks}, variant) for picks, variant in variants)


def cases() -> Iterator[tuple[str, Settings, type, str]]:
    """(section, selecting key, variant, key); a shared key whose witness is a run is tried in one variant only."""
    tried = set()
    for section, picks, variant in choices():
        for key in field_names(variant):
            owner = next(
                base for base in reversed(variant.__mro__) if key in map(key_of, inspect.get_annotations(base))
            )
            seen = WITNESSES.get(f"{section}.{key}")
            if key not in picks and not (seen and seen.observe in (run, die, mirror) and (owner, key) in tried):
                tried.add((owner, key))
                yield section, picks, variant, key


CASES = [pytest.param(*case, id="-".join([f"{case[0]}.{case[3]}", *map(str, case[1].values())])) for case in cases()]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Return the settings of a run of a few steps, by dotted key."""
    folder = tmp_path_factory.mktemp("every")
    before = Path.cwd()
    os.chdir(folder)
    yield {
        "run.name": "it",
        "data.path": str(pack_colours(folder).root),
        "model.name": "tiny-cnn",
        "train.epochs": 2,
        "train.batch_size": 10,
        "train.threads": 1,
    }
    os.chdir(before)


def built(settings: Settings, known: Sequence[str]) -> Config:
    """Build a config from dotted keys, without those that the chosen variants do not have."""
    tree: Tree = {}
    for key, value in settings.items():
        if key in known or key.partition(".")[0] != known[0].partition(".")[0]:
            put(tree, key, value)
    return build_config(tree, where="the test")


@pytest.mark.parametrize(("section", "picks", "variant", "key"), CASES)
def test_a_setting_has_an_effect(base: Settings, section: str, picks: Settings, variant: type, key: str) -> None:
    seen = WITNESSES.get(f"{section}.{key}")
    assert seen is not None, f"{section}.{key} has no witness: add one to WITNESSES"
    known = [f"{section}.{name}" for name in field_names(variant)]
    settings = {**base, **seen.given, **{f"{section}.{by}": name for by, name in picks.items()}}
    without, with_it = built(settings, known), built({**settings, f"{section}.{key}": seen.value}, known)
    assert type(getattr(without, section)) is variant
    assert seen.observe(without) != seen.observe(with_it), f"{section}.{key} = {seen.value!r} changes nothing"


# Whose witness is another place, other code or a refusal.
ELSEWHERE = (
    *("run.name", "run.dir", "run.fresh", "run.processes", "run.max_time", "data.path"),
    *("train.compile", "train.engine", "train.threads"),
    *("tracking.mirrors", "tracking.project", "tracking.entity"),
)
FREE = [key for key in WITNESSES if {key, key.partition(".")[0]} & {*CHANGEABLE_ON_RESUME} and key not in ELSEWHERE]


def test_settings_that_a_resume_may_change_do_not_change_the_weights(base: Settings) -> None:
    average = {"average.name": "swa", "average.start": 0.3, "average.recalibrate": 20, "model.name": "tiny-resnet"}

    def weights_with(*keys: str) -> list[str]:
        tree: Tree = {}
        for name, setting in {**base, **average, **{key: WITNESSES[key].value for key in keys}}.items():
            put(tree, name, setting)
        return final_weights(build_config(tree, where="the test"))

    plain = weights_with()
    assert plain
    together = [key for key in FREE if key != "eval.tta"]  # with whose value eval.tta_below is refused
    for keys in (together, ["eval.tta"]):
        assert weights_with(*keys) == plain, [key for key in keys if weights_with(key) != plain]


def test_every_other_setting_is_refused_and_all_are_counted() -> None:
    effective, refused = len(CASES), 0
    for section, picks, variant in choices():
        for key in set(keys_of(get_type_hints(Config)[section])) - set(field_names(variant)):
            with pytest.raises(UserError, match=rf"{section}\.{key} has no effect with {section}\.\w+ = "):
                build_config({section: {**picks, key: 1}}, where="the test")
            refused += 1
    named = {f"{section}.{key}" for section, picks, variant in choices() for key in {*field_names(variant)} - {*picks}}
    assert WITNESSES.keys() == named, "a witness of a setting that is gone"
    print(f"{len(WITNESSES)} settings: {effective} act, {refused} are refused beside a choice without them")
    assert refused > 100
