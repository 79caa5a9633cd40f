"""``cifar-dist model``: the table as printed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cifar_dist import cli
from cifar_dist.errors import UserError
from cifar_dist.exit_codes import EXIT_DONE


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.run(["model", *words]) == EXIT_DONE
    return capsys.readouterr().out


def row(text: str, layer: str) -> list[str]:
    lines = [line.replace("|", " ").split() for line in text.splitlines()]
    (line,) = [words for words in lines if words[:1] == [layer]]
    return line[1:]


def test_the_published_figures_of_the_custom_resnet_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "custom-resnet", "--batch", "512")
    assert text.startswith("custom-resnet: 10 classes, images of 32x32x3\n")
    assert "6,573,130 (all trainable)" in text
    assert "194.18 G for a batch of 512" in text
    assert "88 pixels; 64 at the last convolution; 81 if pools between convolutions count only as strides" in text
    assert row(text, "layer3.1.body.1.0") == [
        "Conv2d",
        "512x4x4",
        "512x4x4",
        "3x3",
        "2,359,296",
        *("35.9", "%"),
        *("19.33", "G", "16.8", "MB", "64"),
    ]
    assert row(text, "layer1.0.1") == ["MaxPool2d", "128x32x32", "128x16x16", "2x2/2", "67.1", "MB", "6"]
    assert "26.3 MB parameters, 1.73 GB outputs of a batch of 512, in float32" in text
    table = text.partition("\n\n")[2].partition("\n\n")[0]
    assert max(len(line) for line in table.splitlines()) <= 122


def test_the_receptive_field_table_lists_what_widens_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "resnet34", "--size", "224", "--receptive-field")
    assert row(text, "conv1") == ["Conv2d", "7x7", "2x2", "2", "7"]
    assert row(text, "maxpool") == ["MaxPool2d", "3x3", "2x2", "4", "11"]
    assert row(text, "layer4.2.conv2") == ["Conv2d", "3x3", "1x1", "32", "899"]
    assert "BatchNorm2d" not in text


@pytest.mark.parametrize("name", ["custom-resnet", "resnet50", "torchvision:densenet121"])
def test_the_formulae_of_the_receptive_field_are_right(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "field.csv"
    text = said(capsys, name, "--size", "64", "--receptive-field", "--csv", str(out))
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(text.partition("\n\n")[2].partition("\n\n")[0].splitlines()) - 2
    for line in rows:
        for what in ("jump", "field"):
            sum_, _, result = line[f"{what}_formula"].partition(" = ")
            assert eval(sum_) == int(result) == int(line[what]), line
        assert row(text, line["layer"])[-2:] == [line["jump"], line["field"]]


def test_the_layers_are_written_as_exact_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "layers.csv"
    said(capsys, "custom-resnet", "--batch", "2", "--csv", str(out))
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(line["parameters"]) for line in rows) == 6_573_130
    assert sum(float(line["share"]) for line in rows) == pytest.approx(1)
    assert rows[0]["output"] == "64x32x32"
    assert int(rows[0]["output_bytes"]) == 2 * 64 * 32 * 32 * 4
    with pytest.raises(UserError, match="cannot be written"):
        said(capsys, "custom-resnet", "--csv", str(tmp_path / "nowhere" / "layers.csv"))


def test_options_classes_and_image_sizes_are_applied(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("widths=[8, 16]", "blocks=[1, 1]", "dropout=[0.5]")
    text = said(capsys, "small-resnet", "--options", *options, "--classes", "7", "--size", "16", "--channels", "1")
    assert "small-resnet: 7 classes, images of 16x16x1" in text
    assert row(text, "stem.0")[:3] == ["Conv2d", "1x16x16", "64x16x16"]
    assert row(text, "head.1")[:3] == ["Linear", "16", "7"]


def test_a_recipe_gives_its_model_and_its_dataset_s_images(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, digits: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[model]\nname = "tiny-resnet"\nfreeze = true\n[model.options]\nwidths = [4, 8]\n')
    assert cli.run(["model", "--recipe", str(path)]) == 0
    assert "shards/cifar10 is not packed: 10 classes are assumed; see --classes" in capsys.readouterr().err
    text = said(capsys, "--recipe", str(path), "--classes", "3")
    assert "tiny-resnet: 3 classes, images of 32x32x3" in text
    assert "27 trainable" in text
    assert row(text, "head.0")[1:3] == ["8", "3"]
    path.write_text(path.read_text() + f'[data]\npath = "{digits}"\n')
    text = said(capsys, "--recipe", str(path), "--options", "widths=[4]", "--size", "20")
    assert "tiny-resnet: 10 classes, images of 20x20x" in text


def test_a_name_that_no_model_has_may_be_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "small-resnet/bottleneck") == said(capsys, "--recipe", "small-resnet/bottleneck")
    assert "2,820,390" in said(capsys, "se-resnet"), "the model, where there are both"


def test_a_name_beside_the_setting_of_another_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"'resnet18' and --model\.name both give the model; give one of them"):
        said(capsys, "resnet18", "--model.name", "wrn-28-10")


def test_settings_are_written_as_for_any_other_verb(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["torchvision:vit_b_16", "--classes", "10"]
    with pytest.raises(UserError, match=r"enlarge the images with --model\.image_size"):
        said(capsys, *words)
    text = said(capsys, *words, "--model.image_size", "224")
    assert "torchvision:vit_b_16: 10 classes, images of 224x224x3" in text
    apart = said(capsys, "--recipe", "demo", "--model.options.widths", "[8, 16]")
    assert apart == said(capsys, "--model.options.widths", "[8, 16]", "--recipe", "demo")
    assert apart == said(capsys, "demo", "--model.options.widths=[8, 16]")
    text = said(capsys, "--recipe", "small-resnet", "--model.options.widths=[8]", "--model.options.blocks=[1]")
    assert row(text, "head.2")[:3] == ["Linear", "128", "10"]


def test_no_figure_is_printed_where_none_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert "receptive field  the entire image\n" in said(capsys, "se-resnet")
    text = said(capsys, "torchvision:swin_t", "--size", "64")
    assert "receptive field  unknown: positions are mixed in a way that cannot be traced\n" in text


def test_the_home_folder_is_expanded_in_every_argument_that_is_a_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.parse(["export", "x", "--out=~/x.pt2"]).out == tmp_path / "x.pt2"
    assert cli.parse(["verify", "~/shards"]).path == tmp_path / "shards"
    assert cli.parse(["pack", "~/in", "~/out"]).source == str(tmp_path / "in")
    assert cli.parse(["pack", "$HOME/in", "${HOME}/out"]).source == str(tmp_path / "in")
    with pytest.raises(UserError, match=r"the variable \$NOT_SET in '\$NOT_SET/in' is not set"):
        cli.parse(["pack", "$NOT_SET/in", "out"])
    assert cli.parse(["sweep", "table", "x", "--csv=~/x.csv"]).csv == tmp_path / "x.csv"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give one model: cifar-dist model NAME"),
        (["tiny-cnn", "--recipe", "demo"], "give one model"),
        (["mine.toml"], "mine.toml"),
        (["tiny-cn"], "did you mean 'tiny-cnn'"),
        (["net.py"], "model.name 'net.py' does not say what to use of that file; write net.py:Attribute"),
        (["--recipe", "dmeo"], "did you mean 'demo'"),
        (["tiny-cnn", "--options", "dropout"], "--options takes KEY=VALUE, not 'dropout'"),
        (["tiny-cnn", "--options", "drop=0.1"], "tiny-cnn has no option 'drop'; did you mean 'dropout'"),
        (["small-resnet", "--options", "widths=[8"], "is not a TOML list"),
        (["small-resnet", "--options", "a.b=1"], "--options takes KEY=VALUE, not 'a.b=1'"),
        (["speed-net", "--size", "8"], "speed-net cannot take images of 8x8 with 3 channels"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        said(capsys, *words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["--size", "100000"], ["--classes", "0"], ["--channels", "many"], ["--batch", "-1"]])
def test_numbers_out_of_range_are_refused_by_the_parser(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=f"argument {words[0]}: "):
        said(capsys, "tiny-cnn", *words)
