"""``report.html``: a run on one self-contained page, drawn from the run folder alone, at any time.

What is missing (the run is still training, was never evaluated, lost a file) is omitted from the page and is not an
error. All text from files is escaped, control characters included, and the page has no scripts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cifar_dist.config.saved import read_config
from cifar_dist.config.settings import settings_of
from cifar_dist.config.tree import to_toml
from cifar_dist.data.dataset_folder import is_dataset
from cifar_dist.data.manifest import Manifest
from cifar_dist.data.read import ShardReader
from cifar_dist.errors import UserError, printable, quoted
from cifar_dist.files.atomic import write_atomic
from cifar_dist.files.reading import read_json
from cifar_dist.formatting import counted, duration, loss_figure, percent, size
from cifar_dist.optim.lr_curve import Curve, difference
from cifar_dist.report.confusions import CSS, explore_confusions
from cifar_dist.report.curves import draw_curves
from cifar_dist.report.evaluation import SHEETS, draw_evaluation
from cifar_dist.report.evaluation_files import Evaluation, ImageOf, read_evaluation
from cifar_dist.report.lr_curve import draw_lr_curve
from cifar_dist.report.page import embed, escape, isolate, page, section
from cifar_dist.report.results import (
    files_of_report,
    has_changed_manifest,
    is_on_other_data,
    last_step,
    lost_metrics,
    read_state,
)
from cifar_dist.report.style import Picture
from cifar_dist.report.usage import draw_usage
from cifar_dist.run_folder import FINAL, EvaluationFolder, EvaluationSummary, RunFolder
from cifar_dist.terminal.notice import notice
from cifar_dist.tracking import metrics, timeline
from cifar_dist.tracking.environment import read_facts
from cifar_dist.tracking.facts import RunFacts
from cifar_dist.tracking.table import EpochRow, EpochTable
from cifar_dist.tracking.usage import Usage

_EVALUATIONS_SHOWN = 3
_ROWS_SHOWN = 40


def write_report(run: RunFolder, data: Path | None = None) -> Path:
    """Redraw a run's figures, write its ``report.html`` and return its path.

    Args:
        run: the run folder; only ``config.toml`` is required.
        data: a packed dataset, which may be that of the run where its settings name another place.

    Raises:
        UserError: it is not a run folder.
    """
    config, files = read_config(run.config), files_of_report(run)
    records = metrics.read(run.metrics)
    events = timeline.read(run.timeline)
    environment = read_json(run.environment)
    facts = read_facts(run.environment)
    curves = draw_curves(records, events, run.figures, facts.steps_per_epoch)
    usage = None
    if drawn := draw_usage(records, run.figures / "time.png"):
        usage, time_picture = drawn
        curves.append(time_picture)
    lr_curve = Curve.load(run.lr_curve)
    rows = EpochTable(records).rows()
    note = ""
    if lost := lost_metrics(run, last_step(rows), read_state(run)):
        notice(printable(lost))
        note = f'<p class="soft">{escape(lost)}</p>'
    if lr_curve is not None:
        curves.append(draw_lr_curve(lr_curve, run.lr_curve_picture))
        note += _note_range_test(difference(run.lr_curve, settings_of(config), facts.fingerprint))
    evaluations = _evaluations(run)
    own_data: Manifest | None = None
    here: Manifest | None = None
    try:
        own_data = run.read_manifest()
        here = _find_data(run, [Path(config.data.path), *filter(None, [data])], own_data)
    except UserError as error:
        if evaluations:
            has = "has the sheets of images that were drawn before, and no images of confusions"
            notice(printable(f"the report of {run.path} {has}: {error}"))
    shown, others = evaluations[:_EVALUATIONS_SHOWN], evaluations[_EVALUATIONS_SHOWN:]

    parts = [
        _headline(run, rows, evaluations, events, own_data),
        _facts(facts, rows, events, usage),
        section("Training", embed(one for one in curves if one.path.name != "overview.png") + note),
        *(_evaluation(one, _images(here, one), f"confusions-{n}", own_data) for n, one in enumerate(shown, 1)),
        section("Older evaluations", _list(others, own_data)) if others else "",
        section("Epochs", _epochs(rows)) if rows else "",
        section("What happened", _events(events)) if events else "",
        section("Settings", f"<pre>{escape(to_toml(config))}</pre>"),
        section("Environment", f"<pre>{escape(json.dumps(environment, indent=2, ensure_ascii=False))}</pre>"),
    ]
    typed = escape(quoted(run.name if run.path.parent == Path("runs") else run.path))
    footer = (
        "<footer>Written by cifar-dist from the run folder; "
        f"write it again with <code>cifar-dist report {typed}</code>.</footer>"
    )
    write_atomic(run.report, page(run.name, "".join(parts) + f"\n{footer}\n{files}", CSS))
    return run.report


def _note_range_test(made_with: str) -> str:
    """Say that the range test is of a run of other settings or data; nothing if it is not."""
    return f'<p class="soft">The range test was made with {escape(made_with)}.</p>' if made_with else ""


# ---- what to show -----------------------------------------------------------------------------------------------


def _evaluations(folder: RunFolder) -> list[Evaluation]:
    """Read the run's complete evaluations: the one that ended the run first, then the newest first."""
    found, final = [], folder.final_evaluation()
    for evaluation in reversed(folder.evaluation_folders()):
        try:
            found.append(read_evaluation(evaluation.path))
        except UserError as error:
            notice(printable(f"{error}: the report omits it"))
    return sorted(found, key=lambda evaluation: final is None or evaluation.folder != final.path)


def _find_data(run: RunFolder, places: Sequence[Path], own_data: Manifest) -> Manifest:
    """Read the packed dataset of the run.

    Args:
        run: the run.
        places: where it may be; the first is that of the run's settings.
        own_data: its manifest.

    Raises:
        UserError: it is in none of them, or damaged.
    """
    for place in filter(is_dataset, places):
        here = Manifest.load(place)
        if here.fingerprint == own_data.fingerprint:
            return here
    path = quoted(run.path)
    way = f"give its place: cifar-dist resume {path} --data.path DIR"
    if not run.is_finished():  # a resume would train it
        way = f"write its place into {run.config}, and repeat: cifar-dist report {path}"
    raise UserError(f"the dataset of {run.path} is not at {places[0]}; {way}")


def _images(here: Manifest | None, evaluation: Evaluation) -> ImageOf | None:
    """Open the evaluated images in the dataset of the run; None if they are not there."""
    if here is None or is_on_other_data(evaluation.summary, here):
        return None
    split = evaluation.summary.split
    try:
        reader = ShardReader(here, split)
        if len(reader) != len(evaluation.probabilities):
            return None
        if evaluation.labels is not None and not np.array_equal(evaluation.labels, here.labels(split)):
            return None  # an evaluation of an earlier version, on another dataset of the same name
    except UserError:
        return None
    return reader.image


# ---- parts of the page ------------------------------------------------------------------------------------------


def _headline(
    run: RunFolder,
    rows: Sequence[EpochRow],
    evaluations: Sequence[Evaluation],
    events: Sequence[timeline.Event],
    own_data: Manifest | None,
) -> str:
    known = [
        evaluation.summary
        for evaluation in evaluations
        if evaluation.summary.accuracy is not None and not is_on_other_data(evaluation.summary, own_data)
    ]
    state = read_state(run)
    best = max((row.val_accuracy for row in rows if not math.isnan(row.val_accuracy)), default=None)
    if known and (known[0].checkpoint == FINAL or best is None):
        value = _percent(known[0].accuracy)
        beside = _about_accuracy(known[0])
        if best is not None:
            beside += f"<br>best validation accuracy {_percent(best)}"
    elif best is not None:
        value, beside = _percent(best), "best validation accuracy" + " so far" * (state != "finished")
        if known:  # of some weights on some split
            beside += f"<br>{_percent(known[0].accuracy)} {_about_accuracy(known[0])}"
    else:
        value, beside = "", "not evaluated yet"
    end = timeline.last_of_a_process(events)
    if state == "killed":  # which only the next start records
        beside += f"<br>killed after step {rows[-1].step:,}" if rows else "<br>killed"
    elif end is not None and end.kind not in ("started", "resumed", "finished"):
        beside += f"<br>{end.kind} after step {end.step:,}"
    number = f'<span class="figure">{value.replace(" %", "")}<small>&thinsp;%</small></span>' if value else ""
    return f'<h1>{escape(run.name)}</h1>\n<div class="headline">{number}<span class="beside">{beside}</span></div>\n'


def _about_accuracy(summary: EvaluationSummary) -> str:
    weights = "" if summary.checkpoint == FINAL else f" of {isolate(summary.checkpoint)}"
    views = "one view of each image" if summary.tta == "0" else f"test-time augmentation {escape(summary.views)}"
    images = counted(summary.samples, f"{escape(summary.split)} image")
    return f"accuracy{weights} on {images}, {views}"


def _facts(facts: RunFacts, rows: Sequence[EpochRow], events: Sequence[timeline.Event], usage: Usage | None) -> str:
    seconds = sum(row.seconds for row in rows if not math.isnan(row.seconds))
    starts = len(timeline.starts(events))
    measured = [row.images_per_second for row in rows if not math.isnan(row.images_per_second)]
    on = (_join(facts.processes, facts.device), facts.wrapper, facts.precision)
    pairs = [
        ("model", facts.model),
        ("parameters", _count(facts.parameters)),
        ("dataset", facts.dataset),
        ("training images", _count(facts.train_samples)),
        ("epochs", f"{len(rows)} of {facts.epochs}" if rows and facts.epochs else len(rows) or None),
        ("training time", duration(seconds) if seconds else None),
        ("images per second", f"{measured[-1]:,.0f}" if measured else None),
        ("of the device's arithmetic", percent(usage.utilisation, 0) if usage and usage.utilisation else None),
        ("peak memory", size(usage.peak_bytes) if usage else None),
        ("device", ", ".join(filter(None, on))),
        ("starts", starts if starts > 1 else None),
        ("origin", timeline.origin(events)),
    ]
    cards = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(str(value))}</dd></div>" for what, value in pairs if value
    )
    return f'<dl class="facts">{cards}</dl>\n' if cards else ""


def _evaluation(evaluation: Evaluation, image_of: ImageOf | None, name: str, own_data: Manifest | None) -> str:
    pictures = draw_evaluation(evaluation, image_of)
    confusions = ""
    if image_of is not None and evaluation.labels is not None:
        confusions = explore_confusions(evaluation, evaluation.labels, image_of, name)
    figures = EvaluationFolder(evaluation.folder).figures
    sheets = [Picture(figures / name, text) for name, text in SHEETS.items() if (figures / name).is_file()]
    charts = [one for one in pictures if one not in sheets and not (confusions and one.path.name == "confusion.png")]
    about = f"<p>{_about(evaluation)}</p>"
    return section(_title(evaluation, own_data), about + embed(wide=sheets) + confusions + embed(charts))


def _list(evaluations: Sequence[Evaluation], own_data: Manifest | None) -> str:
    rows = "".join(
        f'<tr><td class="text">{_title(one, own_data)}</td><td class="text">{_about(one)}</td></tr>'
        for one in evaluations
    )
    head = '<thead><tr><th class="text">evaluation</th><th class="text">views, and folder</th></tr></thead>'
    return _table(f"{head}<tbody>{rows}</tbody>", len(evaluations), "evaluations")


def _title(evaluation: Evaluation, own_data: Manifest | None) -> str:
    """Say the weights, the data where these are not the run's, and the accuracy, as HTML."""
    summary = evaluation.summary
    weights = "Final" if summary.checkpoint == FINAL else isolate(summary.checkpoint)
    title = f"{weights} on {escape(summary.split)}"
    if is_on_other_data(summary, own_data):
        title += f" of {isolate(summary.data)}"
        if own_data and has_changed_manifest(summary, own_data):
            title += " with a changed manifest"
        elif summary.fingerprint:
            title += f" ({escape(summary.fingerprint)})"
    return title + (f": {_percent(summary.accuracy)}" if summary.accuracy is not None else "")


def _about(evaluation: Evaluation) -> str:
    summary = evaluation.summary
    plain = summary.plain_accuracy
    beside = f" ({_percent(plain)} without)" if plain is not None and summary.tta != "0" else ""
    return f"TTA {escape(summary.views)}{beside}, in <code>{escape(evaluation.folder.name)}</code>"


def _epochs(rows: Sequence[EpochRow]) -> str:
    known = [row for row in rows if not math.isnan(row.val_accuracy)]
    best = max(reversed(known), key=lambda row: row.val_accuracy, default=None)  # the last of equals, as in training
    head = "<tr>" + "".join(
        f"<th>{title}</th>"
        for title in ("epoch", "train loss", "train", "val loss", "val", "learning rate", "images/s", "time")
    )
    mark = ' class="best"'
    body = "".join(
        f"<tr{mark if row is best else ''}>"
        f"<td>{row.epoch + 1}</td><td>{_number(row.train_loss)}</td><td>{_percent(row.train_accuracy)}</td>"
        f"<td>{_number(row.val_loss)}</td><td>{_percent(row.val_accuracy)}</td><td>{_rate(row.lr)}</td>"
        f"<td>{f'{row.images_per_second:,.0f}' if not math.isnan(row.images_per_second) else ''}</td>"
        f"<td>{duration(row.seconds)}</td></tr>"
        for row in rows
    )
    return _table(f"<thead>{head}</tr></thead><tbody>{body}</tbody>", len(rows), "epochs")


def _events(events: Sequence[timeline.Event]) -> str:
    rows = "".join(
        f'<tr><td class="time">{escape(event.time.replace("T", " ").replace("Z", " UTC"))}</td>'
        f'<td class="text">{escape(event.kind)}</td><td>step {event.step:,}</td>'
        f'<td class="text">{escape(_join(event.processes, event.where))}</td>'
        f'<td class="text">{escape(event.note)}</td></tr>'
        for event in events
    )
    head = '<th class="text">time</th><th class="text">event</th><th>after</th>'
    head += '<th class="text">on</th><th class="text">note</th>'
    return _table(f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>", len(events), "events")


def _table(rows: str, count: int, what: str) -> str:
    """A table, folded where it is long."""
    table = f'<div class="scroll"><table>{rows}</table></div>'
    return table if count <= _ROWS_SHOWN else f"<details><summary>all {count} {what}</summary>{table}</details>"


# ---- text and numbers for the reader ----------------------------------------------------------------------------


def _percent(value: float | None) -> str:
    return percent(value) if value is not None and not math.isnan(value) else ""


def _number(value: float) -> str:
    return loss_figure(value) if not math.isnan(value) else ""


def _rate(value: float) -> str:
    return f"{value:.4g}" if not math.isnan(value) else ""


def _count(value: int) -> str:
    return f"{value:,}" if value else ""


def _join(processes: int, where: str) -> str:
    return f"{processes} \u00d7 {where}" if processes and where else ""
