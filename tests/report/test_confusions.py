"""The part of a report that leads from confusions to images."""

from __future__ import annotations

import base64
import html
import io
import re
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from support.browser import browse, needs_browser
from support.contrast import LEAST, contrast, rgb

from cifar_dist.report.confusions import CSS, explore_confusions
from cifar_dist.report.evaluation_files import Evaluation
from cifar_dist.report.page import page as html_page
from cifar_dist.run_folder import EvaluationSummary

HOSTILE = '<script>alert("x")</script>&"'


def evaluation(predicted: list[int], classes: int, names: list[str] | None = None) -> Evaluation:
    """Image i is called ``i.png`` and was predicted with a confidence that no other has."""
    probabilities = np.zeros((len(predicted), classes), np.float32)
    probabilities[np.arange(len(predicted)), predicted] = np.linspace(0.6, 0.9, len(predicted))
    ids = [f"{sample}.png" for sample in range(len(predicted))]
    summary = EvaluationSummary(classes=tuple(names or (f"class-{n}" for n in range(classes))))
    return Evaluation(Path("none"), summary, probabilities, None, ids)


def image_of(sample: int) -> NDArray[np.uint8]:
    return np.full((4, 6, 3), sample % 256, np.uint8)


class Explorer(HTMLParser):
    """The numbers that are links, and the galleries: their ids and images, and the links in each by their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.numbers: dict[str, int] = {}
        self.galleries: dict[str, list[tuple[str, NDArray[np.uint8]]]] = {}
        self.links: dict[str, dict[str, str]] = {}
        self._link = self._gallery = self._title = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = {name: value or "" for name, value in attrs}
        if tag == "a":
            self._link = found["href"].removeprefix("#")
        elif tag == "section":
            self._gallery = found["id"]
            assert self._gallery not in self.galleries
            assert found["tabindex"] == "-1", "it takes the focus of the link that leads to it"
            self.galleries[self._gallery], self.links[self._gallery] = [], {}
        elif tag == "img":
            content = base64.b64decode(found["src"].removeprefix("data:image/png;base64,"))
            pixels = np.asarray(Image.open(io.BytesIO(content)))
            self.galleries[self._gallery].append((found["alt"], pixels))

    def handle_data(self, data: str) -> None:
        if self._link and self._gallery:
            self.links[self._gallery][data] = self._link
        elif self._link:
            self.numbers[self._link] = int(data)
        self._link = ""


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=90))
def test_every_number_leads_to_the_images_that_it_counts(pairs: list[tuple[int, int]]) -> None:
    labels = np.array([true for true, _ in pairs])
    page = Explorer(explore_confusions(evaluation([one for _, one in pairs], 3), labels, image_of, "x"))
    assert page.numbers == {f"x-{true}-{one}": pairs.count((true, one)) for true, one in pairs}
    assert page.numbers.keys() == page.galleries.keys()
    names = list(page.galleries)
    assert page.links == {
        name: ({"next": after} if after else {}) | ({"previous": before} if before else {})
        for name, after, before in zip(names, [*names[1:], ""], ["", *names], strict=False)
    }
    for name, images in page.galleries.items():
        samples = [int(re.match("\u2068(\\d+)\\.png\u2069: ", title)[1]) for title, _ in images]  # type: ignore[index]
        assert {f"x-{pairs[sample][0]}-{pairs[sample][1]}" for sample in samples} == {name}
        assert samples == sorted(samples, reverse=len({*name.split("-")[1:]}) == 2), "confident mistakes, doubtful hits"
        for sample, (_, pixels) in zip(samples, images, strict=True):
            assert np.array_equal(pixels, image_of(sample))


def test_of_many_classes_the_most_frequent_confusions_are_listed_and_the_images_are_bounded() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 10, 20_000) * 10, rng.integers(0, 100, 20_000)
    text = explore_confusions(evaluation(predicted.tolist(), 100), labels, image_of, "x")
    page = Explorer(text)
    assert len(page.numbers) == len(page.galleries) == 30
    assert min(page.numbers.values()) > 20
    assert 500 < sum(map(len, page.galleries.values())) <= 600
    assert "class-10" in text


def test_memory_does_not_grow_with_the_square_of_the_classes() -> None:
    """A matrix of 30,000 classes would have 7 GB."""
    one = evaluation([*range(100), 5], 30_000)
    tracemalloc.start()
    try:
        text = explore_confusions(one, np.array([*range(100), 4]), image_of, "x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert Explorer(text).numbers == {"x-4-5": 1}
    assert peak < 50e6


def test_many_classes_without_a_mistake_have_no_empty_table() -> None:
    text = explore_confusions(evaluation([*range(40)], 40), np.arange(40), image_of, "x")
    assert "table" not in Explorer(text).tags
    assert "Select" not in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_number_of_the_matrix_can_be_read(scheme: str) -> None:
    dark = scheme == "dark"
    paper = re.findall(r"--paper: (#\w{6})", html_page("", ""))[dark]
    ink = re.findall(r"\.matrix a {[^}]* color: (#\w+);", CSS)[dark]
    (full,) = re.findall(r"\.matrix \.full a { color: (#\w+);", CSS)
    for right in range(1, 101):
        predicted = np.repeat([0, 1], [right, 100 - right])
        text = explore_confusions(evaluation(predicted.tolist(), 2), np.zeros(100, np.int64), image_of, "x")
        cells = re.findall(r'<td class="([a-z ]*)" style="background:(#\w{6})(\w\w)"><a [^>]*>(\d+)', text)
        assert len(cells) == 1 + (right < 100)
        for kind, colour, share, count in cells:
            part = int(share, 16) / 255
            cell = part * rgb(colour) + (1 - part) * rgb(paper)
            assert contrast(cell, rgb(full if "full" in kind else ink)) >= LEAST, (kind, count)


def test_the_colours_of_the_matrix_are_printed() -> None:
    """A browser omits them to save ink, and a white number would be on white paper."""
    assert re.search(r"\.matrix td {[^}]* print-color-adjust: exact;", CSS)


def test_a_gallery_opens_where_has_is_unknown() -> None:
    rules = re.findall(r"^([^{}@]*){[^{}]*display: block", CSS, re.MULTILINE)
    assert [rule for rule in rules if ":target" in rule and ":has" in rule and "," in rule] == []


def measured(folder: Path, texts: list[str], widths: list[int], selector: str, value: str) -> list[list[int]]:
    """Return the value of each element that is selected, of each text as a page in a window of each width."""
    frames = [
        f'<iframe srcdoc="{html.escape(html_page("", text, CSS))}" width="{width}" height="900"></iframe>'
        for text in texts
        for width in widths
    ]
    measure = (
        "<body onload=\"out.textContent = [...document.querySelectorAll('iframe')].map(frame =>"
        f" [...frame.contentDocument.querySelectorAll('{selector}')].map(one => {value})).join(';')\">"
    )
    page = folder / "page.html"
    page.write_text(f'<!doctype html><meta charset="utf-8">{measure}<p id="out"></p>{"".join(frames)}')
    (found,) = re.findall(r'<p id="out">(.*?)</p>', browse(page, "--dump-dom"))
    return [[int(one) for one in values.split(",")] for values in found.split(";")]


@needs_browser
def test_a_matrix_without_room_keeps_names_of_rows_on_one_line(tmp_path: Path) -> None:
    names = [
        *"airplane automobile deer aquarium_fish \u98db\u884c\u6a5f\u5834".split(),
        *(f"class {n}" for n in range(19)),
    ]
    labels = np.arange(len(names))
    text = explore_confusions(evaluation([1, *labels[1:].tolist()], len(names), names), labels, image_of, "x")
    for heights in measured(tmp_path, [text], [360, 768, 1280], ".matrix tbody th", "one.offsetHeight"):
        assert max(heights[:5]) <= 36, "a row is as high as its number"


@needs_browser
def test_a_link_to_a_gallery_moves_the_focus_there(tmp_path: Path) -> None:
    """So that the next Tab is within it, and not at the first number of the next matrix."""
    text = explore_confusions(evaluation([1, 0, 1], 2), np.array([0, 1, 1]), image_of, "x")
    follow = "document.querySelector('.matrix a[href=\"#x-1-0\"]').click(); out.textContent = document.activeElement.id"
    page = tmp_path / "page.html"
    page.write_text(html_page("", f'{text}<p id="out"></p><script>onload = () => {{ {follow} }}</script>', CSS))
    assert '<p id="out">x-1-0</p>' in browse(page, "--dump-dom")


@needs_browser
def test_the_number_whose_images_are_shown_is_marked(tmp_path: Path) -> None:
    text = explore_confusions(evaluation([1, 0, 1], 2), np.array([0, 1, 1]), image_of, "x")
    follow = """
    const mark = () => { out.textContent += [...document.querySelectorAll(".confusions a")].filter(
      one => getComputedStyle(one).outlineStyle == "solid").map(one => one.hash).join() + " " };
    mark(); document.querySelector('.matrix a[href="#x-1-0"]').click(); mark();
    """
    page = tmp_path / "page.html"
    page.write_text(html_page("", f'{text}<p id="out"></p><script>onload = () => {{ {follow} }}</script>', CSS))
    assert '<p id="out">#x-0-1 #x-1-0 </p>' in browse(page, "--dump-dom")


@needs_browser
def test_images_beside_or_below_leave_the_numbers_their_room(tmp_path: Path) -> None:
    """Of matrices of CIFAR-10, of 18 classes and of 12 with long names, and of the list of 100 classes."""
    cifar = "airplane automobile bird cat deer dog frog horse ship truck".split()
    some, long = ([f"class_{n:02}_{end}" for n in range(12)] for end in ("with_a_name", "of_a_very_long_name"))
    fish = [f"aquarium_fish_{n}" for n in range(100)]

    def shown(names: list[str]) -> str:
        labels = np.repeat(np.arange(len(names)), 2)
        predicted = [(n // 2 + n % 2) % len(names) for n in range(len(labels))]
        return explore_confusions(evaluation(predicted, len(names), names), labels, image_of, "x")

    hidden = "one.scrollWidth - one.clientWidth"
    texts = [shown(names) for names in (cifar, [f"c{n}" for n in range(18)], some, long)]
    widths = measured(tmp_path, texts, [768, 1000, 1280], ".confusions .scroll", hidden)
    assert widths == [[0]] * 12
    assert measured(tmp_path, [shown(fish)], [360, 768, 1280], ".confusions .scroll", hidden) == [[0]] * 3


def test_heads_of_columns_are_turned_with_all_their_letters() -> None:
    """Those of Chinese and Japanese stay upright in vertical text, and would be turned onto their heads."""
    turned = [rule for rule in re.findall(r"{[^{}]*}", CSS) if "rotate(180deg)" in rule]
    assert turned
    assert all("text-orientation: sideways;" in rule for rule in turned)


def test_names_of_classes_are_whole_and_not_cut_to_the_same() -> None:
    names = [f"A_long_beginning_{one}_a_long_ending" for one in "ab"]
    text = explore_confusions(evaluation([0, 1], 2, names), np.array([0, 1]), image_of, "x")
    assert all(text.count(name) >= 2 for name in names)


def test_names_of_classes_are_text() -> None:
    page = Explorer(explore_confusions(evaluation([0, 1], 2, [HOSTILE, "b"]), np.array([1, 0]), image_of, "x"))
    assert "script" not in page.tags


def test_names_of_classes_are_isolated_from_the_counts_beside_them() -> None:
    """A name in Hebrew or Arabic would take the number after it to its other side."""
    dog = "\u05db\u05dc\u05d1"
    text = explore_confusions(evaluation([0, 1, 1], 2, [dog, "b"]), np.array([1, 0, 1]), image_of, "x")
    assert f"<h4><bdi>b</bdi>, predicted as <bdi>{dog}</bdi>: 1 image</h4>" in text
    assert "<h4><bdi>b</bdi>, correctly predicted: 1 image</h4>" in text
    isolated = [f"\u2068{name}\u2069" for name in (dog, "b")]
    assert f'title="{isolated[1]}, predicted as {isolated[0]}: 1 image"' in text
    assert f'title="\u20680.png\u2069: {isolated[0]} 60 %, ' in text


def test_a_large_image_is_shown_small_and_a_gray_one_gray() -> None:
    def large(sample: int) -> NDArray[np.uint8]:
        return np.full((300, 200, 1), 7, np.uint8)

    page = Explorer(explore_confusions(evaluation([0], 1), np.array([0]), large, "x"))
    ((_, pixels),) = page.galleries["x-0-0"]
    assert pixels.shape == (72, 48)
