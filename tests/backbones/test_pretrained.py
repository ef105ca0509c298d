"""Published weights: the real loading code, against a server of our own on the loopback address.

The server stands in for the Hugging Face hub and for torchvision's, with small networks or random weights in the
form of the published ones.
"""

import hashlib
import http.server
import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save
from torch import Tensor, nn

from pixelwise.backbones import fetch, load_pretrained, make_backbone, pretrained
from pixelwise.core.errors import SettingError

ENCODER = "test_resnet"
REPOSITORY = "timm/test_resnet.r160_in1k"
HUB_PATH = f"/{REPOSITORY}/resolve/main/model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# A connection that ends too early is closed when it is collected; some versions of Python warn of it.
CUT_SHORT = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


class Host(http.server.ThreadingHTTPServer):
    """Serves `files` by path, and cuts those in `cut` short."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    """HEAD and GET as the hub answers them: the commit, a tag of the content, its length."""

    server: Host

    def do_HEAD(self) -> None:
        content = self.server.files.get(self.path)
        self.server.asked.append(self.path)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if self.path in self.server.cut else content)

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def dead_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def published_encoder(**changes: Tensor | None) -> tuple[nn.Module, bytes]:
    """timm's classifier with weights that no other start has, and its file."""
    torch.manual_seed(5)
    network = timm.create_model(ENCODER, pretrained=False).eval()
    for values in network.state_dict().values():
        if values.is_floating_point():
            values.copy_(torch.rand_like(values) * 0.1 + 0.01)
    tensors = {name.replace("__", "."): values for name, values in changes.items()}
    weights = {**network.state_dict(), **tensors}
    return network, save({name: values for name, values in weights.items() if values is not None})


def three_channels(images: Tensor) -> Tensor:
    """The colour image in which a network sees what an adapted one sees in `images`."""
    channels = images.shape[1]
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    further = images[:, 3:].sum(dim=1, keepdim=True) / 3
    return (images[:, :3] + further) * 3 / channels


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_encoder_of_timm(channels: int, host: Host, tmp_path: Path) -> None:
    network, host.files[HUB_PATH] = published_encoder()
    backbone = make_backbone(ENCODER, in_channels=channels).eval()
    steps: list[tuple[int, int]] = []
    progress = lambda done, total: steps.append((done, total))  # noqa: E731
    loaded = load_pretrained(backbone, endpoint=host.url, folder=tmp_path, progress=progress)
    size, path = len(host.files[HUB_PATH]), tmp_path / "test_resnet.r160_in1k.safetensors"
    folded = "" if channels == 3 else f"; its first layer is folded to {channels} channel(s)"
    assert str(loaded) == (
        f"test_resnet starts with the published weights of {REPOSITORY}, from the Hugging Face hub ({path}, "
        f"{size / 1e6:.1f} MB, SHA-256 {hashlib.sha256(host.files[HUB_PATH]).hexdigest()[:8]}...): {loaded.wanted} of "
        f"its {loaded.wanted} tensors were taken by name, 2 of the file were left (fc.bias, fc.weight){folded}."
    )
    assert steps[-1] == (size, size)
    images = torch.randn(2, channels, 64, 96)
    expected = network.forward_intermediates(three_channels(images), intermediates_only=True)
    for feature, other in zip(backbone(images), expected, strict=True):
        torch.testing.assert_close(feature, other, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_ends_earlier(host: Host, tmp_path: Path) -> None:
    network, host.files[HUB_PATH] = published_encoder()
    backbone = make_backbone(ENCODER, depth=1).eval()
    load_pretrained(backbone, endpoint=host.url, folder=tmp_path)
    images = torch.randn(2, 3, 64, 96)
    expected = network.forward_intermediates(images, intermediates_only=True)
    assert len(backbone(images)) == 2 < len(expected)
    for feature, other in zip(backbone(images), expected, strict=False):
        torch.testing.assert_close(feature, other, rtol=1e-4, atol=1e-5)


def test_an_encoder_is_fetched_once(host: Host, tmp_path: Path) -> None:
    _, host.files[HUB_PATH] = published_encoder()
    first, second = make_backbone(ENCODER), make_backbone(ENCODER, output_stride=8)
    load_pretrained(first, endpoint=host.url, folder=tmp_path)
    asked = len(host.asked)
    load_pretrained(second, endpoint=host.url, folder=tmp_path)
    assert len(host.asked) == asked > 0
    weights = second.state_dict()
    assert all(torch.equal(values, weights[name]) for name, values in first.state_dict().items())


def test_a_file_that_was_put_into_the_folder(dead_port: int, tmp_path: Path) -> None:
    network, content = published_encoder()
    (tmp_path / "test_resnet.r160_in1k.safetensors").write_bytes(content)
    backbone = make_backbone(ENCODER)
    load_pretrained(backbone, endpoint=f"http://127.0.0.1:{dead_port}", folder=tmp_path)
    assert torch.equal(backbone.state_dict()["network.conv1.0.weight"], network.state_dict()["conv1.0.weight"])


def refused(backbone: Any, message: str, **places: Any) -> None:
    """Loading says so, and leaves the backbone as it was."""
    before = {name: values.clone() for name, values in backbone.state_dict().items()}
    with pytest.raises(SettingError, match=message):
        load_pretrained(backbone, **places)
    assert all(torch.equal(values, before[name]) for name, values in backbone.state_dict().items())


def unreachable(name: str, url: str, reason: str, path: Path) -> str:
    return (
        rf"^model\.pretrained: the weights of {name} could not be fetched from {url}: {reason}\. Connect to the "
        rf"internet, put that file at {path}, name any file of weights with --weights, or leave model\.pretrained "
        r"out\.$"
    )


def test_an_encoder_without_a_server(dead_port: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{dead_port}"
    path = tmp_path / "test_resnet.r160_in1k.safetensors"
    message = unreachable(ENCODER, url + HUB_PATH, ".*Connection refused.*", path)
    refused(make_backbone(ENCODER), message, endpoint=url, folder=tmp_path)


def test_an_encoder_that_the_server_does_not_have(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "test_resnet.r160_in1k.safetensors"
    message = unreachable(ENCODER, host.url + HUB_PATH, ".*404.*", path)
    refused(make_backbone(ENCODER), message, endpoint=host.url, folder=tmp_path)


@CUT_SHORT
def test_an_encoder_cut_short_on_its_way(host: Host, tmp_path: Path) -> None:
    _, host.files[HUB_PATH] = published_encoder()
    host.cut.add(HUB_PATH)
    path = tmp_path / "test_resnet.r160_in1k.safetensors"
    message = unreachable(ENCODER, host.url + HUB_PATH, "[0-9,]+ of [0-9,]+ bytes came", path)
    refused(make_backbone(ENCODER), message, endpoint=host.url, folder=tmp_path)
    host.cut.clear()
    load_pretrained(make_backbone(ENCODER), endpoint=host.url, folder=tmp_path)


def test_an_encoder_that_was_cut_short_before(tmp_path: Path) -> None:
    _, content = published_encoder()
    path = tmp_path / "test_resnet.r160_in1k.safetensors"
    path.write_bytes(content[: len(content) // 2])
    message = rf"^model\.pretrained: {path} is not a complete file of weights: .+\. Fetch it again; if it "
    refused(make_backbone(ENCODER), message, folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"conv1__0__weight": None}, r"1 missing: conv1\.0\.weight"),
        ({"bn1__weight": torch.zeros(3)}, r"1 of another shape: bn1\.weight \(3 instead of \d+\)"),
    ],
)
def test_an_encoder_with_other_tensors(changes: Any, reason: str, host: Host, tmp_path: Path) -> None:
    _, host.files[HUB_PATH] = published_encoder(**changes)
    message = (
        rf"^model\.pretrained: the weights of {tmp_path}/.* do not fit {ENCODER}: 74 of its 75 tensors are in the "
        rf"file; {reason}; 2 in the file alone: fc\.bias, fc\.weight\. Use another backbone, or leave "
        r"model\.pretrained out\.$"
    )
    refused(make_backbone(ENCODER), message, endpoint=host.url, folder=tmp_path)


def serve(host: Host, weights: dict[str, Tensor] | object, monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """Publish weights as torchvision does; gives the file's name."""
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    content = buffer.getvalue()
    file = f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    host.files[f"/{file}"] = content
    monkeypatch.setattr(pretrained, "published_url", lambda weights: f"{host.url}/{file}")
    return file


def published_alexnet(**changes: Tensor | None) -> dict[str, Tensor]:
    torch.manual_seed(3)
    with torch.device("meta"):
        features = torchvision.models.alexnet().features
    tensors = {f"features.{name}": torch.randn(value.shape) for name, value in features.state_dict().items()}
    tensors |= {name.replace("__", "."): values for name, values in changes.items()}  # type: ignore[misc]
    tensors["classifier.1.weight"] = torch.zeros(2, 2)
    return {name: value for name, value in tensors.items() if value is not None}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_alexnet(channels: int, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = published_alexnet()
    serve(host, weights, monkeypatch, "alexnet-owt")
    backbone = make_backbone("alexnet", in_channels=channels, norm="none")
    loaded = load_pretrained(backbone, folder=tmp_path)
    assert loaded.source == "the published weights of torchvision (AlexNet_Weights.IMAGENET1K_V1)"
    colors = make_backbone("alexnet", norm="none")
    colors.load_state_dict({name: values for name, values in weights.items() if name.startswith("features.")})
    images = torch.randn(1, channels, 40, 50)
    torch.testing.assert_close(backbone(images)[0], colors(three_channels(images))[0], rtol=1e-4, atol=1e-4)
    for name, values in list(backbone.state_dict().items())[1:]:
        assert torch.equal(values, weights[name])


def test_alexnet_that_ends_earlier(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = published_alexnet()
    serve(host, weights, monkeypatch, "alexnet-owt")
    backbone = make_backbone("alexnet", norm="none", depth=1)
    load_pretrained(backbone, folder=tmp_path)
    assert list(backbone.state_dict()) == [
        f"features.{place}.{part}" for place in (0, 3) for part in ("weight", "bias")
    ]
    assert all(torch.equal(values, weights[name]) for name, values in backbone.state_dict().items())


def test_a_silent_download_that_is_made_once(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    serve(host, published_alexnet(), monkeypatch, "alexnet-owt")
    load_pretrained(make_backbone("alexnet", norm="none"), folder=tmp_path)
    load_pretrained(make_backbone("alexnet", norm="none"), folder=tmp_path)
    assert capfd.readouterr() == ("", "")
    assert len(host.asked) == 1


def test_a_file_that_is_not_what_its_name_says(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = serve(host, published_alexnet(), monkeypatch, "alexnet-owt")
    torch.save(published_alexnet(features__0__bias=torch.zeros(64)), tmp_path / file)
    message = (
        rf"^model\.pretrained: {tmp_path / file} is not what its name says: its SHA-256 is [0-9a-f]{{64}}\. Remove it "
        r"and try again\.$"
    )
    refused(make_backbone("alexnet", norm="none"), message, folder=tmp_path)


def test_a_download_of_other_content(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.files["/alexnet-00000000.pth"] = b"other"
    url = f"{host.url}/alexnet-00000000.pth"
    monkeypatch.setattr(pretrained, "published_url", lambda weights: url)
    monkeypatch.setattr(fetch, "_checksum", lambda tag: "")
    message = unreachable(
        "alexnet", url, "its SHA-256 is [0-9a-f]{64} instead of 00000000", tmp_path / "alexnet-0+.pth"
    )
    refused(make_backbone("alexnet", norm="none"), message, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT", 0.3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        path = tmp_path / "test_resnet.r160_in1k.safetensors"
        began = time.monotonic()
        message = unreachable(ENCODER, url + HUB_PATH, "(no answer within 0.3 seconds|.*timed out)", path)
        refused(make_backbone(ENCODER), message, endpoint=url, folder=tmp_path)
        assert time.monotonic() - began < 9


def test_vgg16_with_batch_norm(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's convolutions have a bias before the batch norm, ours have none: the outputs are the same."""
    torch.manual_seed(0)
    layers: list[Any] = [64, 64, "M", 128, 128, "M", *3 * [256], "M", *3 * [512], "M", *3 * [512], "M"]
    theirs = torchvision.models.vgg.make_layers(layers, batch_norm=True).eval()
    for module in theirs:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    weights = {f"features.{name}": value for name, value in theirs.state_dict().items()}
    serve(host, {n: v for n, v in weights.items() if not n.endswith("num_batches_tracked")}, monkeypatch, "vgg16_bn")
    backbone = make_backbone("vgg16").eval()
    load_pretrained(backbone, folder=tmp_path)
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[-1], theirs(images), rtol=1e-4, atol=1e-4)


def test_googlenet(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own scaling of the image is in the weights: equal away from the border."""
    torch.manual_seed(0)
    theirs = torchvision.models.GoogLeNet(init_weights=False, transform_input=True).eval()
    serve(host, theirs.state_dict(), monkeypatch, "googlenet")
    backbone = make_backbone("googlenet").eval()
    load_pretrained(backbone, folder=tmp_path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.conv1(theirs._transform_input(images))[..., 2:-2, 2:-2]
        torch.testing.assert_close(backbone(images)[0][..., 2:-2, 2:-2], expected, rtol=0, atol=1e-5)
    theirs_state = theirs.state_dict()
    folded = {"conv1.conv.weight", "conv1.bn.running_mean"}
    assert all(torch.equal(v, theirs_state[k]) for k, v in backbone.state_dict().items() if k not in folded)


def test_torchvision_without_a_server(dead_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{dead_port}/alexnet-00000000.pth"
    monkeypatch.setattr(pretrained, "published_url", lambda weights: url)
    message = unreachable("alexnet", url, ".*Connection refused.*", tmp_path / "alexnet-00000000.pth")
    refused(make_backbone("alexnet", norm="none"), message, folder=tmp_path)


def test_a_file_that_torchvision_does_not_have(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{host.url}/alexnet-00000000.pth"
    monkeypatch.setattr(pretrained, "published_url", lambda weights: url)
    message = unreachable("alexnet", url, ".*404.*", tmp_path / "alexnet-00000000.pth")
    refused(make_backbone("alexnet", norm="none"), message, folder=tmp_path)


@CUT_SHORT
def test_a_file_of_torchvision_cut_short(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = serve(host, published_alexnet(), monkeypatch, "alexnet")
    host.cut.add(f"/{file}")
    message = unreachable("alexnet", f"{host.url}/{file}", "[0-9,]+ of [0-9,]+ bytes came", tmp_path / file)
    refused(make_backbone("alexnet", norm="none"), message, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


class Unwanted:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def test_nothing_but_tensors_is_unpickled(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    function, arguments = Unwanted().__reduce__()
    function(*arguments)  # so it would be seen
    assert capsys.readouterr().out == "unpickled\n"
    file = serve(host, {"features.0.weight": Unwanted()}, monkeypatch, "alexnet")
    message = (
        rf"^model\.pretrained: {tmp_path / file} holds more than tensors \(.*print\), and nothing else is unpickled"
    )
    refused(make_backbone("alexnet", norm="none"), message, folder=tmp_path)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features__3__bias": None}, r"9 of .*; 1 missing: features\.3\.bias; 1 in "),
        ({"features__0__weight": None}, r"9 of .*; 1 missing: features\.0\.weight; 1 in "),
        (
            {"features__3__bias": torch.zeros(5)},
            r"9 of .*; 1 of another shape: features\.3\.bias \(5 instead of 192\); 1 in",
        ),
        (
            {f"features__9{place}__weight": torch.zeros(5) for place in range(2)},
            r"2 more tensors stand in the same parts of the file, as of .*: features\.90\.weight, features\.91",
        ),
    ],
)
def test_alexnet_with_other_tensors(
    changes: Any, reason: str, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = serve(host, published_alexnet(**changes), monkeypatch, "alexnet")
    message = (
        rf"^model\.pretrained: the weights of {tmp_path / file} do not fit alexnet: {reason}.* Use another backbone, "
        r"or leave model\.pretrained out\.$"
    )
    refused(make_backbone("alexnet", norm="none"), message, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "what", "instead"),
    [
        ("lenet", {}, "lenet", 'vgg16, googlenet, alexnet with model.norm "none", or resnet18'),
        ("alexnet_paper", {"width": 64}, "alexnet_paper", "vgg16, googlenet, alexnet .*"),
        ("alexnet", {"norm": "batch"}, 'alexnet with model.norm "batch"', 'model.norm "none"'),
        ("vgg16", {"norm": "group", "width": 64}, 'vgg16 with model.norm "group"', 'model.norm "none" or "batch"'),
        ("vgg16", {"width": 8}, "vgg16 with model.width 8", "model.width 64"),
        ("test_resnet", {"norm": "group"}, "test_resnet with model.norm 'group'", 'model.norm "batch"'),
    ],
)
def test_what_nobody_has_published(
    name: str, settings: dict[str, Any], what: str, instead: str, tmp_path: Path
) -> None:
    message = (
        rf"^model\.pretrained: there are no published weights for {what}: use {instead}, or leave model\.pretrained "
        r"out\.$"
    )
    refused(make_backbone(name, **settings), message, folder=tmp_path)


def test_an_encoder_of_timm_without_weights(tmp_path: Path) -> None:
    with torch.device("meta"):
        backbone = make_backbone("darknet17")
    message = (
        r"^model\.pretrained: there are no published weights for darknet17: use another encoder, such as resnet18, or "
        r"leave model\.pretrained out\.$"
    )
    with pytest.raises(SettingError, match=message):
        load_pretrained(backbone, folder=tmp_path)


def test_torchvision_publishes_where_we_look() -> None:
    for weights in pretrained.TORCHVISION.values():
        assert pretrained.published_url(weights).startswith("https://download.pytorch.org/models/")
