"""The verbs by name, in the order in which ``cifar-dist --help`` lists them."""

from __future__ import annotations

from cifar_dist.verbs import (
    Verb,
    doctor,
    evaluate,
    export,
    index,
    launch,
    lr_find,
    model,
    pack,
    predict,
    preview,
    recipes,
    replay,
    report,
    runs,
    speed,
    submit,
    sweep,
    train,
    verify,
)

VERBS: dict[str, Verb] = {
    "pack": pack,
    "index": index,
    "verify": verify,
    "recipes": recipes,
    "preview": preview,
    "model": model,
    "lr-find": lr_find,
    "doctor": doctor,
    "train": train,
    "launch": launch,
    "sweep": sweep,
    "submit": submit,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "speed": speed,
    "replay": replay,
    "report": report,
    "runs": runs,
}
