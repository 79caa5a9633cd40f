"""Everything that the documentation mentions exists: settings, files, recipes, verbs, make targets, links."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from support.documents import blocks, commands, made, pages, prose
from support.running import ROOT

from cifar_dist import cli, recipe
from cifar_dist.config import Config, TransformConfig
from cifar_dist.config.changes import CHANGEABLE_ON_RESUME
from cifar_dist.config.choice import keys_of
from cifar_dist.config.help import describe
from cifar_dist.config.overrides import parse_overrides
from cifar_dist.launch.configs import find_config
from cifar_dist.verbs.launch import split_options
from cifar_dist.verbs.registry import VERBS
from cifar_dist.verbs.train import split_help

PAGES = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))

_HINTS = get_type_hints(Config)
SECTIONS = {section.name: set(keys_of(_HINTS[section.name])) for section in fields(Config)}
SECTIONS["augment"] |= {*TransformConfig.variants, "Invert"}  # the last one is an example's own
PLACEHOLDERS = {"NAME", "RECIPE", "CONFIG", "RUN", "SOURCE", "OUT", "DIR", "FILE", "VERB", "SPLIT", "CLASS", "KEY"}
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def spans(page: Path) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def is_placeholder(text: str) -> bool:
    return bool(set(re.findall(r"[A-Z]+", text)) & PLACEHOLDERS) and Path(text).name not in (
        "README.md",
        "CHANGELOG.md",
    )


def known_recipes(page: Path) -> set[str]:
    """Return the names of the shipped recipes, and of those that the page creates."""
    return {*recipe.shipped(), *(Path(file).stem for file in made(page) if "/recipes/" in file)}


@PAGES
def test_settings_exist(page: Path) -> None:
    text = "\n".join(
        line for line in page.read_text(encoding="utf-8").splitlines() if not line.startswith("cifar-dist: ")
    )
    for key in set(re.findall(r"--([a-z_]+\.[a-z_]+(?:\.[a-z_]+)?)", text)) - {"section.field"}:
        section, field = key.split(".")[:2]
        assert field in SECTIONS[section], key
    for span in spans(page):
        section, _, field = span.partition(".")
        if section in SECTIONS and re.fullmatch(r"[a-z_]+", field) and not (ROOT / span).exists():
            assert field in SECTIONS[section], span


@PAGES
def test_files_exist(page: Path) -> None:
    tops = {path.name for path in ROOT.iterdir()} - {".venv"}
    for span in spans(page):
        path = span.split()[0].rstrip("/") if "/" in span else span
        is_path = ("/" in path and path.split("/")[0] in tops) or re.fullmatch(r"[\w-]+\.(py|md|sh|sbatch)", path)
        if (
            not is_path
            or is_placeholder(path)
            or path in made(page)
            or re.match(r"runs/|shards/[\w-]+$|shards/mine\.", path)
        ):
            continue
        assert (ROOT / path).exists() or (page.parent / path).exists() or is_in_the_package(path), span


def is_in_the_package(name: str) -> bool:
    return "/" not in name and any((ROOT / "cifar_dist").rglob(name))


@PAGES
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, heading = target.partition("#")
        if re.match(r"[a-z]+://", target):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.M)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


@PAGES
def test_tables_have_as_many_cells_in_each_row_as_columns(page: Path) -> None:
    """Otherwise they are shown as text."""
    for table in re.findall(r"(?:^\|.*\|\n)+", prose(page), re.M):
        rows = table.splitlines()
        assert len(rows) > 1, table
        assert re.fullmatch(r"[| :-]+", rows[1]), rows[1]
        for row in rows:
            assert len(cells(row)) == len(cells(rows[0])), row


def cells(row: str) -> list[str]:
    return re.split(r"(?<!\\)\|", row)


@PAGES
def test_make_targets_exist(page: Path) -> None:
    said = [*spans(page), *commands(page)]
    targets = {word[1] for text in said if (word := re.match(r"make ([a-z]+)", text))}
    assert targets <= TARGETS


@PAGES
def test_commands_parse(page: Path) -> None:
    """The program itself parses every command of ours, whether or not it can run here."""
    known = known_recipes(page)
    for line in commands(page):
        for words in simple_commands(line):
            check_command(words, line, known)
    for span in spans(page):
        if (verb := re.match(r"cifar-dist ([a-z-]+)", span)) and not verb[1].startswith("-"):
            assert verb[1] in VERBS, span


def simple_commands(line: str) -> list[list[str]]:
    """Return the words of each command in a line of shell."""
    found: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word in ("&&", "||", "|", ";", "&"):
            found.append([])
        else:
            found[-1].append(word)
    return [words[: next((i for i, word in enumerate(words) if word[0] in "<>"), None)] for words in found if words]


def check_command(words: Sequence[str], line: str, known: set[str]) -> None:
    """Assert that the program accepts a command, if it is one of ours."""
    names = [Path(word).name for word in words]
    if "--config_file" in words:
        assert (ROOT / words[words.index("--config_file") + 1]).is_file(), line
    if "local.sh" in names:
        check_verb(["launch", *words[names.index("local.sh") + 1 :]], line, known)
    elif script := next((name for name in names if name in ("train.py", "train.sbatch")), None):
        check_training(words[names.index(script) + 1 :], line, known)
    elif start := next((i for i, name in enumerate(names, 1) if name in ("cifar-dist", "cifar_dist")), 0):
        check_verb(words[start:], line, known)


def check_verb(words: Sequence[str], line: str, known: set[str]) -> None:
    if words[0] == "train":
        check_training(words[1:], line, known)
    elif words[0] == "launch":
        find_config(words[1])
        _, rest = split_options(words[2:])
        check_verb(rest if rest[0] in VERBS else ["train", *rest], line, known)
    elif words[0] not in ("--help", "--version"):
        assert words[0] in VERBS, line
        cli.parse(words)


def check_training(words: Sequence[str], line: str, known: set[str]) -> None:
    (name, *rest), section = split_help(words)
    if section:
        describe(recipe.load(name, rest), section)
    if name.endswith(".toml"):
        parse_overrides(rest)
    elif name in recipe.shipped():
        recipe.load(name, rest)
    else:
        assert name in known, line


def test_what_a_resume_may_change_is_listed() -> None:
    text = (ROOT / "docs" / "resume.md").read_text(encoding="utf-8")
    listed = text.partition("## What a resume may change")[2].partition("Any other key")[0]
    assert tuple(re.findall(r"`([a-z_.]+)`", listed)) == CHANGEABLE_ON_RESUME


def test_every_dataset_file_and_launch_config_is_documented() -> None:
    data, launching = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("data.md", "launching.md"))
    for path in (ROOT / "shards").glob("[a-z]*.toml"):
        assert f"`{path.stem}`" in data, f"add `{path.stem}` to the datasets below the table of docs/data.md"
    for path in (ROOT / "launch").glob("*.yaml"):
        assert re.search(rf"^\| `{path.stem}` \|", launching, re.M), path.name


def test_oldest_versions_are_those_of_the_package() -> None:
    written = {one for page in pages() for one in re.findall(r"[a-z]+>=[0-9.]+[0-9]", page.read_text("utf-8"))}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert written
    assert written <= {*project["dependencies"]}


def test_examples_of_code_compile() -> None:
    for page in pages():
        for block in blocks(page):
            if block.language == "python":
                compile(block.text, f"{page.name}:{block.file}", "exec")
