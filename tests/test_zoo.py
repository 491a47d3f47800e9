from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vmamba
from support.golden import GOLDEN, synthetic_state_dict
from vmamba import zoo
from vmamba.checkpoints.info import Preprocessing
from vmamba.checkpoints.saving import save_weights
from vmamba.errors import CheckpointError, OptionError
from vmamba.zoo import model_from_checkpoint

PUBLISHED = {entry["model"]: entry for entry in json.loads((GOLDEN / "published.json").read_text())["classification"]}
RELEASED = [name for name in vmamba.list_models() if name in PUBLISHED]


def test_all_models_are_registered_in_timm() -> None:
    assert len(RELEASED) == 9
    assert vmamba.list_models() == [*RELEASED, "vmamba_nano", "vmamba_pico"]
    assert set(vmamba.list_models()) <= set(timm.list_models())


@pytest.mark.parametrize("name", RELEASED)
def test_published_addresses_and_results(name: str) -> None:
    variant = zoo.VARIANTS[name]
    assert variant.url == PUBLISHED[name]["checkpoint"]
    assert variant.top1 == PUBLISHED[name]["top1"]
    assert timm.get_pretrained_cfg(name).url == PUBLISHED[name]["checkpoint"]


@pytest.mark.parametrize(("name", "millions"), [("vmamba_nano", 7), ("vmamba_pico", 1)])
def test_sizes_of_our_own_models(name: str, millions: int) -> None:
    parameters = sum(p.numel() for p in vmamba.create_model(name).parameters())
    assert abs(parameters / 1e6 - millions) < 0.1


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown model 'vmamba_tiny_s1l9'; do you mean 'vmamba_tiny_s1l8'"):
        vmamba.create_model("vmamba_tiny_s1l9")
    with pytest.raises(ValueError, match="unknown model 'qqq'; choose one of vanilla_vmamba_tiny, "):
        vmamba.create_model("qqq")


def test_models_without_published_weights_say_so() -> None:
    with pytest.raises(ValueError, match="vmamba_pico has no published weights; models that do: vanilla_vmamba_tiny"):
        vmamba.create_model("vmamba_pico", pretrained=True)
    with pytest.raises(ValueError, match="either pretrained=True or a checkpoint, not both"):
        vmamba.create_model("vmamba_tiny_s1l8", pretrained=True, checkpoint="x.pth")


class Quiet(SimpleHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012

    def log_message(self, format: str, *args: Any) -> None:
        self.requests.append(self.path)


@pytest.fixture
def release(
    tmp_path: Path, released: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, torch.Tensor]]:
    """A stand-in for the authors' releases that serves weights for vmamba_tiny_s1l8; an empty hub cache."""
    weights = synthetic_state_dict(released["vmamba_tiny_s1l8"]["state_dict"])
    served = tmp_path / "served"
    served.mkdir()
    torch.save({"model": weights, "epoch": 264}, served / "weights.pth")
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    monkeypatch.setattr(timm.get_pretrained_cfg("vmamba_tiny_s1l8"), "url", url, raising=False)
    monkeypatch.setattr(zoo, "resolve_pretrained_cfg", lambda *_: timm.models.PretrainedCfg(url=url))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    Quiet.requests.clear()
    yield weights
    server.shutdown()
    thread.join()
    server.server_close()


def test_pretrained_downloads_once_and_adapts(release: dict[str, torch.Tensor]) -> None:
    head = release["classifier.head.weight"]
    model = timm.create_model("vmamba_tiny_s1l8", pretrained=True)
    assert torch.equal(model.head.fc.weight, head)
    assert "state_dict" not in model.pretrained_cfg
    fewer = vmamba.create_model("vmamba_tiny_s1l8", pretrained=True, num_classes=5, in_chans=1)
    assert fewer.head.fc.weight.shape[0] == 5
    torch.testing.assert_close(fewer.stem.conv1.weight, release["patch_embed.0.weight"].sum(1, keepdim=True))
    features = timm.create_model("vmamba_tiny_s1l8", pretrained=True, features_only=True)
    assert torch.equal(features.stem.conv1.weight, release["patch_embed.0.weight"])
    assert Quiet.requests == ["/weights.pth"]


def test_checkpoint_argument(tmp_path: Path, released: dict[str, Any]) -> None:
    weights = synthetic_state_dict(released["vmamba_tiny_s1l8"]["state_dict"])
    torch.save({"model": weights}, tmp_path / "weights.pth")
    model = vmamba.create_model("vmamba_tiny_s1l8", checkpoint=tmp_path / "weights.pth")
    assert torch.equal(model.head.fc.weight, weights["classifier.head.weight"])
    with pytest.raises(CheckpointError, match="does not fit vmamba_pico, it looks like vmamba_tiny_s1l8"):
        vmamba.create_model("vmamba_pico", checkpoint=tmp_path / "weights.pth")
    local = timm.create_model(
        "vmamba_tiny_s1l8", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")}
    )
    assert torch.equal(local.head.fc.weight, weights["classifier.head.weight"])


# Checkpoints for other classes and channels, as timm adapts them for pretrained=True


@pytest.fixture
def pico(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(vmamba.create_model("vmamba_pico").state_dict(), tmp_path / "pico.pth")
    return tmp_path / "pico.pth"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 3},
        {"num_classes": 0},
        {"in_chans": 1},
        {"in_chans": 4, "num_classes": 5},
        {"in_chans": 7},
        {"features_only": True},
        {"features_only": True, "in_chans": 1, "out_indices": (1, 2)},
        {"features_only": True, "stage_norms": True},
        {"drop_path_rate": 0.2, "global_pool": "max"},
    ],
)
def test_a_checkpoint_is_adapted_as_timm_adapts(pico: Path, options: dict[str, Any]) -> None:
    overlay = {"file": str(pico), "num_classes": 1000}
    theirs = timm.create_model("vmamba_pico", pretrained=True, pretrained_cfg_overlay=overlay, **options).state_dict()
    ours = vmamba.create_model("vmamba_pico", checkpoint=pico, **options).state_dict()
    assert ours.keys() == theirs.keys()
    fresh = {"head.fc.weight"} if options.get("num_classes") else set()
    for name, tensor in theirs.items():
        if name not in fresh and "stage_norms" not in name:
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)
    if fresh:
        assert 0 < ours["head.fc.weight"].std() < 0.03
        assert not ours["head.fc.bias"].any()


def test_what_is_not_said_comes_from_the_checkpoint(tmp_path: Path) -> None:
    model = vmamba.create_model("vmamba_pico", num_classes=7, in_chans=5)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    again: Any = vmamba.create_model("vmamba_pico", checkpoint=tmp_path / "a.pth")
    assert (again.num_classes, again.in_chans) == (7, 5)
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)
    with pytest.raises(CheckpointError, match="5 channels, which cannot be adapted to 2; only weights for 1 or 3"):
        vmamba.create_model("vmamba_pico", checkpoint=tmp_path / "a.pth", in_chans=2)


@pytest.mark.parametrize("mean", [(0.4,), (0.3, 0.4, 0.5)])
def test_grey_weights_see_the_mean_of_the_channels(tmp_path: Path, mean: tuple[float, ...]) -> None:
    """Weights for grey images take RGB, in the commands, too; what they are given is their description's."""
    grey = vmamba.create_model("vmamba_pico", num_classes=7, in_chans=1).eval()
    prepare = Preprocessing(64, mean=mean, std=(0.2,) * len(mean))
    path = save_weights(grey, tmp_path / "grey.safetensors", preprocessing=prepare)
    rgb = model_from_checkpoint(path, in_chans=3).eval()
    assert (rgb.config.in_chans, len(rgb.info.preprocessing.mean)) == (3, 3)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(rgb(image), grey(image.mean(1, keepdim=True)), rtol=1e-4, atol=1e-5)


def test_descriptions_of_other_channels(tmp_path: Path) -> None:
    model = vmamba.create_model("vmamba_pico", num_classes=7)
    path = save_weights(model, tmp_path / "a.safetensors", preprocessing=Preprocessing(mean=(0.5,) * 2, std=(0.5,) * 2))
    with pytest.raises(CheckpointError, match=r"a\.json: preprocessing: mean has 2 numbers, the images of the model 3"):
        model_from_checkpoint(path)


def test_a_fresh_head_excuses_nothing_else(pico: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit vmamba_nano, it looks like vmamba_pico"):
        vmamba.create_model("vmamba_nano", checkpoint=pico, num_classes=3)
    weights = torch.load(pico)
    del weights["stages.0.blocks.0.ss2d.D"]
    torch.save(weights, pico)
    with pytest.raises(CheckpointError, match=r"1 missing \(stages\.0\.blocks\.0\.ss2d\.D\)"):
        vmamba.create_model("vmamba_pico", checkpoint=pico, num_classes=3)


@pytest.mark.parametrize("options", [{"num_classes": 3}, {"in_chans": 1}, {"drop_path_rate": 0.2, "num_classes": 0}])
def test_model_from_checkpoint_with_other_options(pico: Path, options: dict[str, Any]) -> None:
    model = model_from_checkpoint(pico, **options)
    expected = vmamba.create_model("vmamba_pico", checkpoint=pico, **options)
    assert model.config == expected.config
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor) or name == "head.fc.weight"
    model(torch.randn(1, model.in_chans, 32, 32))
    with pytest.raises(OptionError, match="unknown option 'in_channels'; do you mean 'in_chans'"):
        model_from_checkpoint(pico, in_channels=1)
    with pytest.raises(CheckpointError, match="does not fit"):
        model_from_checkpoint(pico, d_state=2)


def test_advice_can_be_followed(pico: Path) -> None:
    """What the message of a misfit names is an argument that works."""
    small = vmamba.create_model("vmamba_pico", num_classes=3)
    with pytest.raises(CheckpointError, match="create the model with num_classes=1000, or load with strict=False"):
        vmamba.load_weights(small, pico)
    vmamba.load_weights(small, pico, strict=False)
    vmamba.load_weights(vmamba.create_model("vmamba_pico", num_classes=1000), pico)
    grey = vmamba.create_model("vmamba_pico", in_chans=1)
    with pytest.raises(CheckpointError, match="create the model with in_chans=3, or with checkpoint=…, which adapts"):
        vmamba.load_weights(grey, pico)
    vmamba.create_model("vmamba_pico", in_chans=1, checkpoint=pico)
