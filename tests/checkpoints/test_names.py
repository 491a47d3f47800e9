"""Files as training tools write them, and their entry names one in another: the same weights come out of all."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import timm.utils
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import vmamba
from support.golden import GOLDEN, synthetic_state_dict
from vmamba import VMamba
from vmamba.checkpoints.names import ADAPTERS, to_our_names
from vmamba.checkpoints.reading import read_checkpoint
from vmamba.checkpoints.recognition import open_checkpoint
from vmamba.zoo import model_from_checkpoint


@pytest.fixture(scope="module")
def model() -> VMamba:
    torch.manual_seed(0)
    return cast(VMamba, vmamba.create_model("vmamba_pico", num_classes=5).eval())


def assert_model(checkpoint: Any, model: nn.Module, weights: Any = "auto") -> None:
    """The classifier in a checkpoint is this one."""
    got = model_from_checkpoint(checkpoint, weights=weights).state_dict()
    expected = model.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())


def test_timm_checkpoint_saver(model: VMamba, tmp_path: Path) -> None:
    """With its argparse.Namespace, average and optimiser."""
    optimizer = torch.optim.AdamW(model.parameters())
    average = timm.utils.ModelEmaV3(model, decay=0.5)
    for parameter in average.module.parameters():
        parameter.data.add_(1)
    args = argparse.Namespace(model="vmamba_pico", lr=0.1, output=tmp_path)
    saver = timm.utils.CheckpointSaver(
        model, optimizer, args=args, model_ema=average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(epoch=3, metric=61.5)
    assert_model(tmp_path / "last.pth.tar", model)
    assert_model(tmp_path / "model_best.pth.tar", average.module, "model_ema")


class Module(nn.Module):
    """A training tool's module around a model: LightningModule, with a loss that has a parameter."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.criterion = nn.Linear(2, 2)
        self.add_module(name, model)


@pytest.mark.parametrize("attribute", ["model", "net", "vmamba"])
def test_lightning(model: VMamba, tmp_path: Path, attribute: str) -> None:
    """The structure of its files: ``trainer.save_checkpoint`` of Lightning 2.6."""
    content = {
        "epoch": 3,
        "global_step": 300,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": Module(attribute, model).state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [torch.optim.SGD(model.parameters()).state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert_model(tmp_path / "last.ckpt", model)


def test_transformers_save_pretrained(tmp_path: Path) -> None:
    import vmamba.integrations.transformers as integration

    config = integration.VMambaConfig.from_architecture(vmamba.zoo.VARIANTS["vmamba_pico"].config, num_labels=5)
    theirs = integration.VMambaForImageClassification(config)
    theirs.save_pretrained(tmp_path)
    assert_model(tmp_path / "model.safetensors", theirs.vmamba)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_ddp(model: VMamba, tmp_path: Path) -> None:
    wrapped = nn.parallel.DistributedDataParallel(model)
    torch.save(wrapped.state_dict(), tmp_path / "a.pth")
    assert next(iter(wrapped.state_dict())).startswith("module.")
    assert_model(tmp_path / "a.pth", model)
    torch.save({"model": cast(nn.Module, torch.compile(wrapped)).state_dict(), "epoch": 1}, tmp_path / "b.pth")
    assert_model(tmp_path / "b.pth", model)


def test_compiled_averaged_and_checkpointed_models(model: VMamba, tmp_path: Path) -> None:
    inside = vmamba.create_model("vmamba_pico", num_classes=5)
    inside.load_state_dict(model.state_dict())
    for stage in inside.stages:
        stage.blocks = torch.compile(checkpoint_wrapper(stage.blocks))
    wrapped = AveragedModel(torch.compile(Module("net", torch.compile(inside))))
    names = list(wrapped.state_dict())
    assert "n_averaged" in names
    assert any(name.startswith("module._orig_mod.net._orig_mod.stages.0.blocks._orig_mod.") for name in names)
    torch.save(wrapped.state_dict(), tmp_path / "a.pth")
    assert_model(tmp_path / "a.pth", model)


def test_fsdp_prefixes(model: VMamba, tmp_path: Path) -> None:
    """As ``FullyShardedDataParallel`` names the entries inside itself."""
    named = {}
    for name, tensor in model.state_dict().items():
        inner = name.replace("stages.2.", "stages.2._fsdp_wrapped_module.")
        named[f"_fsdp_wrapped_module.{inner}"] = tensor
    torch.save(named, tmp_path / "a.pth")
    assert_model(tmp_path / "a.pth", model)


@pytest.mark.parametrize("stage_norms", [False, True])
def test_features_of_timm(stage_norms: bool) -> None:
    options = {"features_only": True, "stage_norms": stage_norms}
    features = vmamba.create_model("vmamba_pico", **options)
    again = vmamba.create_model("vmamba_pico", **options)
    vmamba.load_weights(again, features.state_dict())
    assert all(torch.equal(t, features.state_dict()[n]) for n, t in again.state_dict().items())
    backbone = vmamba.create_model("vmamba_pico", num_classes=0)
    vmamba.load_weights(backbone, features.state_dict(), strict=False)
    assert torch.equal(backbone.stem.conv1.weight, next(iter(features.state_dict().values())))


def test_our_own_runs(tmp_path: Path) -> None:
    """What the training engine saves: the average in a section of its own, and the recipe, which tells the model."""
    options = {"depths": [1, 1, 1, 1], "scan": "bidirectional"}  # which no registered model has
    model = vmamba.create_model("vmamba_pico", num_classes=5, **options)
    average = timm.utils.ModelEmaV3(model)
    for parameter in average.module.parameters():
        parameter.data.mul_(0.5)
    content = {
        "format": 1,
        "recipe": {"task": "classification", "model": "vmamba_pico", "model_options": options},
        "position": {"step": 3},
        "model": model.state_dict(),
        "model_ema": average.module.state_dict(),
        "optimizer": torch.optim.SGD(model.parameters()).state_dict(),
        "scaler": {},
    }
    torch.save(content, tmp_path / "step_00000003.pt")
    assert_model(tmp_path / "step_00000003.pt", model)
    assert_model(tmp_path / "step_00000003.pt", average.module, "model_ema")
    assert model_from_checkpoint(tmp_path / "step_00000003.pt").config == model.config


PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "model.module.", "net.vmamba.", "vmamba."]


@pytest.mark.parametrize(
    ("prefix", "entry"),
    [(prefix, "classifier") for prefix in PREFIXES]
    # transformers has no dense models in the authors' names
    + [(p, entry) for p in PREFIXES for entry in ("mask_rcnn_golden", "upernet_golden") if "vmamba." not in p],
)
def test_wrappers_around_the_authors_names(prefix: str, entry: str, released: dict[str, Any]) -> None:
    if entry == "classifier":
        shapes = released["vmamba_tiny_s1l8"]["state_dict"]
    else:
        shapes = json.loads((GOLDEN / "dense" / f"{entry.removesuffix('_golden')}.json").read_text())[entry]
    entries = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    plain = to_our_names(entries)
    wrapped = to_our_names({prefix + name: tensor for name, tensor in entries.items()})
    assert {n: t.shape for n, t in wrapped.items()} == {n: t.shape for n, t in plain.items()}


def test_nothing_is_left_to_translate(released: dict[str, Any]) -> None:
    """Every adapter's step is done once it has been taken, in each kind of file that the authors released."""
    kinds = [entry["state_dict"] for entry in released.values()]
    for name in ("mask_rcnn", "upernet"):
        kinds += json.loads((GOLDEN / "dense" / f"{name}.json").read_text()).values()
    for shapes in kinds:
        ours = to_our_names({n: torch.empty(shape, device="meta") for n, shape in shapes.items()})
        assert not any(adapter.recognises(ours.keys()) for adapter in ADAPTERS)
        assert to_our_names(ours).keys() == ours.keys()


def test_tasks_are_told_apart_by_their_entries() -> None:
    for name, task in (("mask_rcnn", "detection"), ("upernet", "segmentation")):
        shapes = json.loads((GOLDEN / "dense" / f"{name}.json").read_text())[f"{name}_golden"]
        checkpoint = open_checkpoint(synthetic_state_dict(shapes))
        assert checkpoint.task == task
        assert checkpoint.is_dense
    backbone: dict[str, Tensor] = read_checkpoint(GOLDEN / "author_format_checkpoint.pth")
    assert open_checkpoint(backbone).task == "classification"
