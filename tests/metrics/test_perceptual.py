"""LPIPS: its weights are found, checked and loaded safely; its plumbing is tested on a random trunk."""

import hashlib
import math
import pickle
import socket
from urllib.error import URLError

import numpy as np
import pytest
import torch

from petct_lib.metrics import perceptual


@pytest.fixture(scope="module")
def trunk() -> dict[str, torch.Tensor]:
    """A random AlexNet trunk, for the plumbing: what it gives is never called LPIPS in results."""
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for i, shape in shapes.items():
        state[f"features.{i}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        state[f"features.{i}.bias"] = torch.zeros(shape[0])
    return state


@pytest.fixture(scope="module")
def random_model(trunk) -> torch.nn.Module:
    return perceptual._lpips_on(trunk)


# LPIPS


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The folder of torch.hub, empty, and a network that is not there."""

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("PETCT_ALEXNET", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def accept(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(perceptual, "ALEXNET_SHA256", hashlib.sha256(content).hexdigest()[:8])


def test_without_file_and_network_the_error_says_where_to_put_it(hub):
    with pytest.raises(perceptual.LpipsUnavailable, match=r"alexnet-owt-7be5be79\.pth.*no network") as caught:
        perceptual.find_alexnet()
    assert str(hub) in str(caught.value)


def test_a_wrong_file_is_refused(hub):
    (hub / perceptual.ALEXNET_FILE).write_bytes(b"not AlexNet")
    with pytest.raises(perceptual.LpipsUnavailable, match=r"SHA-256.*7be5be79"):
        perceptual.find_alexnet()


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_named_file_that_is_missing_is_an_error(hub, monkeypatch, tmp_path, by_variable):
    accept(monkeypatch, b"weights")
    (hub / perceptual.ALEXNET_FILE).write_bytes(b"weights")  # there, but another was asked for
    missing = tmp_path / "elsewhere.pth"
    if by_variable:
        monkeypatch.setenv("PETCT_ALEXNET", str(missing))
    with pytest.raises(perceptual.LpipsUnavailable, match=r"elsewhere\.pth.*alexnet-owt-7be5be79\.pth"):
        perceptual.find_alexnet(None if by_variable else missing)


def test_the_order_of_places(hub, monkeypatch, tmp_path):
    accept(monkeypatch, b"weights")
    places = [tmp_path / "explicit.pth", tmp_path / "variable.pth", hub / perceptual.ALEXNET_FILE]
    for place in places:
        place.write_bytes(b"weights")
    assert perceptual.find_alexnet() == places[2]
    monkeypatch.setenv("PETCT_ALEXNET", str(places[1]))
    assert perceptual.find_alexnet() == places[1]
    assert perceptual.find_alexnet(places[0]) == places[0]


def test_the_download_is_checked_and_fails_fast(hub, monkeypatch):
    calls = []

    def download(url, destination, hash_prefix=None, progress=True):
        calls.append((url, hash_prefix, socket.getdefaulttimeout()))
        with open(destination, "wb") as file:
            file.write(b"weights")

    accept(monkeypatch, b"weights")
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    socket.setdefaulttimeout(77)
    try:
        assert perceptual.find_alexnet() == hub / perceptual.ALEXNET_FILE
        assert perceptual.find_alexnet() == hub / perceptual.ALEXNET_FILE
        assert socket.getdefaulttimeout() == 77
    finally:
        socket.setdefaulttimeout(None)
    assert calls == [(perceptual.ALEXNET_URL, perceptual.ALEXNET_SHA256, perceptual.DOWNLOAD_TIMEOUT_S)]


def test_the_name_of_the_file_carries_its_hash():
    assert perceptual.ALEXNET_SHA256 in perceptual.ALEXNET_FILE
    assert perceptual.ALEXNET_URL.endswith(perceptual.ALEXNET_FILE)


def test_lpips_model_loads_trunk_and_heads_quietly(hub, monkeypatch, trunk, capfd, recwarn):
    place = hub / "random-trunk.pth"
    torch.save(trunk, place)
    accept(monkeypatch, place.read_bytes())
    seed = torch.get_rng_state()
    model = perceptual.lpips_model(place)
    assert torch.equal(torch.get_rng_state(), seed)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    weights = model.state_dict()
    for layer in ("1.0", "2.3", "3.6", "4.8", "5.10"):
        number = layer.split(".")[1]
        assert torch.equal(weights[f"net.slice{layer}.weight"], trunk[f"features.{number}.weight"])
    heads = [weights[f"lin{i}.model.1.weight"] for i in range(5)]
    assert all((head >= 0).all() for head in heads)  # trained so; a random start has negative ones
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_are_never_unpickled(hub, monkeypatch):
    place = hub / "stranger.pth"
    torch.save({"features.0.weight": perceptual.LpipsUnavailable("any class")}, place)
    accept(monkeypatch, place.read_bytes())
    with pytest.raises(pickle.UnpicklingError):
        perceptual.lpips_model(place)


def test_perceptual_distance_of_a_random_trunk(pair, random_model, monkeypatch):
    real, synthetic = pair
    window = (-1000, 400)
    assert perceptual.lpips(real, real, random_model, window=window) == 0
    apart = [perceptual.lpips(real[i : i + 1], synthetic[i : i + 1], random_model, window=window) for i in range(3)]
    assert min(apart) > 0
    assert perceptual.lpips(real, synthetic, random_model, window=window) == pytest.approx(np.mean(apart), rel=1e-4)
    monkeypatch.setattr(perceptual, "LPIPS_BATCH", 2)
    assert perceptual.lpips(real, synthetic, random_model, window=window) == pytest.approx(np.mean(apart), rel=1e-4)
    assert perceptual.lpips(real, synthetic, random_model, window=(5000, 6000)) == 0  # all black in this window


def test_the_display_window_becomes_minus_one_to_one():
    class Recorder(torch.nn.Linear):
        def forward(self, real, synthetic):
            self.seen = real, synthetic
            return torch.ones(len(real), 1, 1, 1)

    model = Recorder(1, 1)
    real = np.array([[[-2000.0, -1000.0], [-300.0, 400.0]]])
    assert perceptual.lpips(real, real + 700, model, window=(-1000, 400)) == 1
    assert model.seen[0].shape == (1, 3, 2, 2)
    for channel in range(3):
        assert model.seen[0][0, channel].flatten().tolist() == pytest.approx([-1, -1, 0, 1])
        assert model.seen[1][0, channel].flatten().tolist() == pytest.approx([-1, 0, 1, 1])
    with pytest.raises(ValueError, match="window"):
        perceptual.lpips(real, real, model, window=(400, 400))
    with pytest.raises(ValueError, match="shape"):
        perceptual.lpips(real, real[:, :1], model, window=(-1000, 400))


def test_torchvision_is_left_alone_where_its_extension_loads(monkeypatch):
    def unexpected(*args):
        raise AssertionError("the operators of a working extension are defined again")

    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(torch.library, "Library", unexpected)
    assert perceptual._ensure_torchvision_imports.__wrapped__() is None


def test_torchvision_is_cured_where_its_extension_fails():
    library = perceptual._ensure_torchvision_imports()
    assert perceptual._ensure_torchvision_imports() is library
    perceptual._ensure_torchvision_imports.__wrapped__()  # a second copy of the cure does no harm
    import torchvision

    assert torchvision.models.alexnet is not None
    assert hasattr(torch.ops.torchvision, "nms")
