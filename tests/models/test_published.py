"""Weights that torchvision publishes: they are read from its cache, and their network computes what its own does."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from huggingface_hub import constants
from support.malicious import Malicious
from support.running import free_port
from torch import Tensor, nn

from cifar_dist.config import OptionValue
from cifar_dist.errors import UserError
from cifar_dist.files.locks import try_lock
from cifar_dist.models import build, pretrained
from cifar_dist.models.pretrained import check_pretrained, load_pretrained

FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "torchvision:resnet18": "resnet18-f37072fd.pth",
    "torchvision:densenet121": "densenet121-a639ec97.pth",
    "torchvision:googlenet": "googlenet-1378be20.pth",
    "torchvision:squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
}
"""What torchvision publishes for a network, as its cache names it."""
GOOGLENET: dict[str, OptionValue] = {"init_weights": False, "transform_input": True}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def network(name: str, classes: int = 10, **options: OptionValue) -> nn.Module:
    return build(name, classes=classes, options=options)


def as_published(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as they are in torchvision's file."""
    if "densenet" in name:
        return {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): weights[key] for key in weights}
    if "googlenet" in name:
        return {**weights, "aux1.fc1.weight": torch.zeros(2), "aux2.conv.bn.bias": torch.zeros(2)}
    return weights


@pytest.mark.parametrize("name", FILES)
def test_published_weights_come_from_the_cache_and_the_head_stays_new(cache: Path, name: str) -> None:
    options: dict[str, OptionValue] = GOOGLENET if "googlenet" in name else {}
    published = network(name, 1000, **options).state_dict()
    torch.save(as_published(name, published), cache / FILES[name])
    model = network(name, 10, **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    skipped = load_pretrained(model, "published", name)
    assert skipped == list(before)[-2:]
    for key, value in model.state_dict().items():
        assert torch.equal(value, (before if key in skipped else published)[key]), key
    assert [file.name for file in cache.iterdir()] == [FILES[name]]


def test_a_network_with_published_weights_computes_what_torchvisions_own_does(cache: Path) -> None:
    """GoogLeNet's were trained on other input, which an option converts ours to."""
    name, images = "torchvision:googlenet", torch.randn(2, 3, 64, 64)
    source = torchvision.models.googlenet(aux_logits=True, init_weights=False)
    torch.save(source.state_dict(), cache / FILES[name])
    model = network(name, 1000, **GOOGLENET)
    assert load_pretrained(model, "published", name) == []
    with torch.no_grad():
        expected = torchvision.models.googlenet(weights="DEFAULT").eval()(images)
        assert torch.equal(model.eval()(images), expected)


@pytest.mark.parametrize("name", ["torchvision:googlenet", "torchvision:inception_v3"])
def test_published_weights_need_the_input_that_they_were_trained_with(name: str) -> None:
    with torch.device("meta"):
        ours, converting = (network(name, init_weights=False, transform_input=on) for on in (False, True))
    check_pretrained(converting, "published", name)
    with pytest.raises(UserError, match=r"mean and deviation 0\.5, .*; use --model\.options\.transform_input true$"):
        check_pretrained(ours, "published", name)


def test_a_file_in_the_cache_is_not_trusted(cache: Path, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    for damaged in (pickle.dumps(Malicious(target), protocol=2), b"noise"):
        (cache / FILES["resnet18"]).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"cannot read weights from .*{FILES['resnet18']}: .*; delete that file"):
            load_pretrained(network("resnet18"), "published", "resnet18")
    assert not target.exists()


def test_a_download_that_breaks_off_does_not_blame_the_file_of_another_job(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def do_GET(self) -> None:
            (cache / FILES["resnet18"]).write_bytes(b"the download of the other job")
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"begun")

    with HTTPServer(("127.0.0.1", 0), Breaking) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{FILES['resnet18']}"
        monkeypatch.setattr(torchvision.models.ResNet18_Weights.DEFAULT.value, "url", url)
        with pytest.raises(UserError, match=rf"cannot download {url} \(invalid hash value .*\); download it on"):
            load_pretrained(network("resnet18", stem="imagenet"), "published", "resnet18")
        server.shutdown()


def test_jobs_that_begin_at_once_download_weights_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, buffer = "torchvision:squeezenet1_1", io.BytesIO()
    torch.save(network(name, 1000).state_dict(), buffer)
    content = buffer.getvalue()
    file = f"squeezenet1_1-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    requests: list[str] = []
    said: list[str] = []
    has_other_come = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        has_other_come.set()

    class Serving(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def do_GET(self) -> None:
            requests.append(self.path)
            if len(requests) > 1:
                has_other_come.set()
            assert has_other_come.wait(60)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    monkeypatch.setattr(pretrained, "notice", say, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Serving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/{file}"
        monkeypatch.setattr(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.value, "url", url)
        with ThreadPoolExecutor(2) as jobs:
            loads = [jobs.submit(load_pretrained, network(name), "published", name) for _ in range(2)]
        assert [len(load.result()) for load in loads] == [2, 2]
        assert (requests, said) == ([f"/{file}"], [f"waiting for another process that downloads {cache / file}"])

        (cache / file).unlink()
        monkeypatch.setattr(pretrained, "_LONGEST_WAIT_SECONDS", 0)
        with (cache.parent / ".locks" / file).open("a") as of_lost_machine:
            assert try_lock(of_lost_machine)
            load_pretrained(network(name), "published", name)
        assert len(requests) == 2
        server.shutdown()


@pytest.mark.parametrize(
    ("stem", "channels", "way"),
    [
        ("cifar", 3, r"; use --model\.options\.stem imagenet --model\.image_size 224$"),
        ("imagenet", 1, "; use images of 3 channels$"),
    ],
)
def test_published_weights_need_the_stem_that_they_were_trained_with(
    cache: Path, stem: str, channels: int, way: str
) -> None:
    model = build("resnet18", classes=10, channels=channels, options={"stem": stem})
    with pytest.raises(UserError, match=way):
        load_pretrained(model, "published", "resnet18")


def test_a_network_without_published_weights_says_so() -> None:
    with pytest.raises(UserError, match=r"no weights are published for tiny-resnet; use --model\.pretrained FILE"):
        load_pretrained(network("tiny-resnet"), "published", "tiny-resnet")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set a proxy port on which nothing listens, so that no machine can reach the internet."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    urllib.request.install_opener(None)  # the next request reads the environment again
    yield
    urllib.request.install_opener(None)


@pytest.mark.usefixtures("offline")
def test_without_internet_access_one_line_says_where_to_put_the_file(cache: Path) -> None:
    check_pretrained(network("resnet18"), "published", "resnet18")  # on a machine from which jobs are submitted
    with pytest.raises(UserError) as caught:
        load_pretrained(network("resnet18"), "published", "resnet18")
    file = FILES["resnet18"]
    assert re.sub(r"\(.*refused\)", "(refused)", str(caught.value)) == (
        f"model.pretrained: cannot download https://download.pytorch.org/models/{file} (refused); download it on a "
        f"machine with a network and copy it to {cache / file}, or use --model.pretrained FILE"
    )
    assert not list(cache.iterdir())


def test_a_hub_that_does_not_answer_is_given_up_after_one_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library would ask it a dozen times, and wait up to a minute each time."""
    monkeypatch.setattr(pretrained, "_TIMEOUT_SECONDS", 0.2)
    name = "timm:test_resnet.r160_in1k"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError, match=rf"cannot download .* \(.*timed out\); .* into {tmp_path}, or use"):
            load_pretrained(network(name), "published", name)
