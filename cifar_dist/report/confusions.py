"""Which images were taken for what: a confusion matrix whose numbers lead to the images that they count.

The page has no scripts. A number is a link to its gallery, and CSS displays the gallery that the address names. That
takes the focus, and leads to the next one: back to the neighbour of a number are up to 900 links.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cifar_dist.formatting import counted, percent
from cifar_dist.report.evaluation import CELL, FULL_CELL, NAMED_CLASSES
from cifar_dist.report.evaluation_files import Evaluation, ImageOf
from cifar_dist.report.page import escape, isolate, isolate_in_attribute, png_url

CSS = """
.confusions { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px 32px; margin-bottom: 32px; }
.matrix { width: auto; font-size: 13px; }
.matrix th, .matrix td { padding: 0; border: 0; }
.matrix thead th { vertical-align: bottom; padding-bottom: 6px; }
.matrix thead span { writing-mode: vertical-rl; text-orientation: sideways; transform: rotate(180deg);
  display: inline-block; max-height: 200px; text-align: left; }
.matrix thead th, .matrix td { min-width: 34px; text-align: center; }
.matrix tbody th { padding-right: 10px; }
.matrix th { white-space: normal; word-break: keep-all; overflow-wrap: break-word; max-width: 200px; }
.matrix td { height: 34px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.matrix a { display: block; line-height: 34px; color: #000; text-decoration: none; outline-offset: -3px; }
.pairs a { outline-offset: 3px; }
.matrix .full a { color: #fff; }
.matrix .right a { font-weight: 600; }
@media (prefers-color-scheme: dark) { .matrix a { color: #fff; } }
.matrix a:hover, .matrix a:focus { outline: 2px solid var(--ink); outline-offset: -2px; }
.galleries section { display: none; scroll-margin-top: 60vh; }  /* below the numbers, which stay in sight */
.galleries section:target { display: block; }
.galleries:not(:has(:target)) section:first-child { display: block; }  /* apart: not every browser has :has */
.galleries h4 { font-size: 15px; margin: 0; overflow-wrap: anywhere; }
.galleries section:focus-visible { outline: 2px solid var(--accent); outline-offset: 6px; border-radius: 4px; }
.galleries p { display: flex; flex-wrap: wrap; gap: 0 16px; }
@media print { .galleries p a { display: none; } }
.images { display: flex; flex-wrap: wrap; gap: 10px; }
figure { margin: 0; width: 72px; text-align: center; color: var(--soft); font-size: 12.5px; }
figure img { width: 72px; border-radius: 4px; margin: 0; image-rendering: pixelated; }
@media (max-width: 999px) { .pairs th, .pairs td { padding: 6px; } }
@media (max-width: 760px) { .pairs td.text { width: 50%; overflow-wrap: anywhere; } }
@media (min-width: 761px) {
  .pairs { grid-template-columns: minmax(0, auto) minmax(300px, 1fr); }
  .pairs section { scroll-margin-top: 96px; }
}
@media (min-width: 1000px) {
  .small { grid-template-columns: minmax(0, auto) minmax(300px, 1fr); }
  .small section { scroll-margin-top: 96px; }
}
"""

_IMAGES = 600  # of mistakes, in all: two megabytes of CIFAR-10
_EACH = 24  # at most of a pair of classes
_DOUBTFUL = 8  # correct ones of a class
_PAIRS = 30  # that are listed where a matrix would be illegible
_SIDE = 72  # pixels of an image on the page
_BESIDE = 590  # pixels, at most, of a matrix that has its images beside it on a screen of 1000, and not below
_BEST = 3  # classes in what is said of an image


@dataclass(frozen=True)
class _Gallery:
    """Images of one true class that were predicted as one class.

    Attributes:
        name: of its element.
        true, predicted: the classes.
        count: images that the evaluation has of them.
        samples: those that are shown.
    """

    name: str
    true: int
    predicted: int
    count: int
    samples: NDArray[np.int64]


def explore_confusions(evaluation: Evaluation, labels: NDArray[np.int64], image_of: ImageOf, name: str) -> str:
    """Return the part of a page that leads from numbers of confusions to their images.

    It is a matrix, or for many classes a list of the most frequent confusions.

    Args:
        evaluation: what was predicted.
        labels: the true classes, int64 [N].
        image_of: returns the images.
        name: begins the names of its elements, and is unique on the page.
    """
    galleries = list(_choose(evaluation, labels, name))
    heading = f'<h3 id="{name}">What was taken for what</h3>\n'
    if not galleries:
        return f'{heading}<p class="soft">No image was taken for one of another class.</p>\n'
    classes = evaluation.probabilities.shape[1]
    if classes > NAMED_CLASSES:
        kind, numbers, what = "pairs", _pairs(evaluation, galleries), "the most frequent confusions"
    else:
        kind = "small" if _matrix_width(evaluation) <= _BESIDE else "large"
        numbers, what = _matrix(evaluation, labels, galleries), "rows are true classes, columns predicted ones"
    neighbours = zip(galleries, [*galleries[1:], None], [None, *galleries], strict=False)
    shown = "".join(_show(evaluation, image_of, *three) for three in neighbours)
    return (
        f'{heading}<p class="soft">Select a number to see its images; {what}.</p>\n<style>{_mark(galleries)}</style>\n'
        f'<div class="confusions {kind}"><div class="scroll">{numbers}</div>\n'
        f'<div class="galleries">{shown}</div></div>\n'
    )


def _choose(evaluation: Evaluation, labels: NDArray[np.int64], name: str) -> Iterator[_Gallery]:
    """Choose the images: confusions, the most frequent ones and most confident images first; then barely right ones."""
    classes = evaluation.probabilities.shape[1]
    cells = labels * classes + evaluation.predicted
    is_right = evaluation.predicted == labels
    pairs, counts = np.unique(cells[~is_right], return_counts=True)
    order = np.argsort(-counts, kind="stable")[: _PAIRS if classes > NAMED_CLASSES else None]
    most = _most_each(counts[order].tolist())
    for pair in pairs[order].tolist():
        true, predicted = divmod(pair, classes)
        samples = np.flatnonzero(cells == pair)
        order = np.argsort(-evaluation.confidence[samples], kind="stable")[:most]
        yield _Gallery(f"{name}-{true}-{predicted}", true, predicted, len(samples), samples[order])
    if classes > NAMED_CLASSES:
        return
    for label in np.unique(labels[is_right]).tolist():
        samples = np.flatnonzero(cells == label * classes + label)
        order = np.argsort(evaluation.confidence[samples], kind="stable")[:_DOUBTFUL]
        yield _Gallery(f"{name}-{label}-{label}", label, label, len(samples), samples[order])


def _most_each(counts: Sequence[int]) -> int:
    """Return how many images of each pair are shown, so that all pairs together stay within the limit; at least one."""
    for most in range(_EACH, 1, -1):
        if sum(min(count, most) for count in counts) <= _IMAGES:
            return most
    return 1


def _matrix(evaluation: Evaluation, labels: NDArray[np.int64], galleries: Sequence[_Gallery]) -> str:
    classes = evaluation.probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    found = {(gallery.true, gallery.predicted): gallery for gallery in galleries}
    names = [escape(evaluation.full_name(label)) for label in range(classes)]
    head = "".join(f'<th scope="col"><span>{name}</span></th>' for name in names)
    rows = []
    for true, name in enumerate(names):
        cells = []
        for predicted in range(classes):
            gallery = found.get((true, predicted))
            if gallery is None:
                cells.append("<td></td>")
                continue
            share = gallery.count / counts[true]
            kinds = {"right": true == predicted, "full": share >= FULL_CELL}
            kind = " ".join(name for name, applies in kinds.items() if applies)
            colour = f"{CELL}{round(255 * share**0.5):02x}"  # the less of it, the more of the page shows
            cells.append(f'<td class="{kind}" style="background:{colour}">{_link(evaluation, gallery)}</td>')
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    return f'<table class="matrix"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _matrix_width(evaluation: Evaluation) -> int:
    """Estimate the width of a matrix in pixels, from above: that of its cells, and of the longest name of a row."""
    names = [evaluation.full_name(label) for label in range(evaluation.probabilities.shape[1])]
    return 34 * len(names) + max(sum(8 if letter.isascii() else 14 for letter in name) for name in names)


def _pairs(evaluation: Evaluation, galleries: Sequence[_Gallery]) -> str:
    rows = "".join(
        f'<tr><td class="text">{escape(evaluation.full_name(gallery.true))}</td>'
        f'<td class="text">{escape(evaluation.full_name(gallery.predicted))}</td>'
        f"<td>{_link(evaluation, gallery)}</td></tr>"
        for gallery in galleries
    )
    head = '<tr><th class="text">true</th><th class="text">predicted</th><th>images</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _mark(galleries: Sequence[_Gallery]) -> str:
    """Return the rule of CSS that marks the number whose gallery is shown: one selector each, as none fits all."""
    cells = {gallery.name: f'td a[href="#{gallery.name}"]' for gallery in galleries}
    selected = [f".confusions:has(#{name}:target) {cell}" for name, cell in cells.items()]
    first = galleries[0].name
    selected.append(f".confusions:has(#{first}):not(:has(:target)) {cells[first]}")
    return ",\n".join(selected) + " { outline: 3px solid var(--ink); }"


def _link(evaluation: Evaluation, gallery: _Gallery, text: str = "") -> str:
    """Link to a gallery, by its number or ``text``."""
    title = _say(evaluation, gallery, isolate_in_attribute)
    return f'<a href="#{gallery.name}" title="{title}">{text or gallery.count}</a>'


def _say(evaluation: Evaluation, gallery: _Gallery, named: Callable[[str], str]) -> str:
    """Say what a gallery counts; ``named`` escapes the names of classes."""
    true, predicted = (named(evaluation.full_name(label)) for label in (gallery.true, gallery.predicted))
    what = f"{true}, predicted as {predicted}" if gallery.true != gallery.predicted else f"{true}, correctly predicted"
    return f"{what}: {counted(gallery.count, 'image')}"


def _show(
    evaluation: Evaluation, image_of: ImageOf, gallery: _Gallery, after: _Gallery | None, before: _Gallery | None
) -> str:
    """Show a gallery, with links to those after and before it: to the next one first, which is one Tab away."""
    shown = len(gallery.samples)
    order = "least certain" if gallery.true == gallery.predicted else "most confident"
    about = f"the {shown} {order}" if shown < gallery.count else f"the {order} first" if shown > 1 else ""
    figures = "".join(_figure(evaluation, sample, image_of) for sample in gallery.samples.tolist())
    links = "".join(_link(evaluation, one, text) for one, text in ((after, "next"), (before, "previous")) if one)
    return (
        f'<section id="{gallery.name}" tabindex="-1"><h4>{_say(evaluation, gallery, isolate)}</h4>'
        f'<p class="soft"><span>{about}&nbsp;</span>{links}</p><div class="images">{figures}</div></section>\n'
    )


def _figure(evaluation: Evaluation, sample: int, image_of: ImageOf) -> str:
    probabilities = evaluation.probabilities[sample]
    best = np.argsort(-probabilities, kind="stable")[:_BEST].tolist()
    names = [isolate_in_attribute(evaluation.full_name(label)) for label in best]
    said = ", ".join(f"{name} {percent(probabilities[label], 0)}" for name, label in zip(names, best, strict=True))
    title = f"{isolate_in_attribute(str(evaluation.ids[sample]))}: {said}"
    return (
        f'<figure title="{title}"><img alt="{title}" src="{png_url(_png(image_of(sample)))}">'
        f"<figcaption>{percent(probabilities[best[0]], 0)}</figcaption></figure>"
    )


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image, uint8 [height, width, channels]; a large one becomes smaller."""
    from PIL import Image

    image = Image.fromarray(pixels if pixels.shape[2] in (3, 4) else pixels[:, :, 0])
    image.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    image.save(content, format="png")
    return content.getvalue()
