"""The authors' segmenter: their outputs from their weights."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from support.golden import GOLDEN, Golden, relative_error, synthetic_state_dict
from vmamba import VMambaConfig
from vmamba.checkpoints.loading import load_whole
from vmamba.checkpoints.names import to_our_names
from vmamba.checkpoints.recognition import open_checkpoint
from vmamba.model.variants import VARIANTS
from vmamba.tasks.segmentation.upernet import IGNORE_INDEX, UperNet, UperNetConfig

NAMES = json.loads((GOLDEN / "dense" / "upernet.json").read_text())


@torch.no_grad()
def test_every_step_is_the_authors() -> None:
    golden = Golden.load(GOLDEN / "dense" / "upernet_96x128.safetensors")
    backbone = VMambaConfig.from_author_options(golden.metadata["backbone"])
    model = UperNet(UperNetConfig(backbone, tuple("abcdefg"), channels=16, auxiliary_channels=12)).eval()
    load_whole(model, open_checkpoint(synthetic_state_dict(NAMES["upernet_golden"])))
    maps = model.features(golden.image)
    for i in range(4):
        assert relative_error(maps[i], golden.tensors[f"backbone{i}"]) < 1e-4
    assert relative_error(model.coarse(golden.image), golden.tensors["logits_quarter"]) < 1e-4
    assert relative_error(model.auxiliary_head(maps), golden.tensors["aux_logits"]) < 1e-4
    assert relative_error(model(golden.image), golden.tensors["logits"]) < 1e-4


@pytest.mark.parametrize("entry", [name for name in NAMES if name != "upernet_golden"])
def test_released_segmenters_fit(entry: str) -> None:
    name = "vmamba_" + entry.removeprefix("upernet_").removesuffix("_ade20k")
    with torch.device("meta"):
        authors = {n: torch.empty(shape) for n, shape in NAMES[entry].items()}
        expected = UperNet(UperNetConfig(VARIANTS[name].config, tuple("c" * 150))).state_dict()
    ours, expected = to_our_names(authors), to_our_names(expected)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in expected.items()}


def test_losses_are_those_of_mmsegmentation_and_teach_everything() -> None:
    torch.manual_seed(0)
    backbone = VMambaConfig(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))
    model = UperNet(UperNetConfig(backbone, tuple("abc"), channels=16, auxiliary_channels=8)).train()
    images, labels = torch.randn(2, 3, 72, 96), torch.randint(3, (2, 72, 96))
    labels[:, :20] = IGNORE_INDEX
    torch.manual_seed(1)
    losses = model(images, labels)
    (losses["decode"] + losses["auxiliary"]).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    model.eval()  # the same without dropout and with fixed statistics
    losses = model(images, labels)
    logits = model(images)
    pixels = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    torch.testing.assert_close(losses["decode"], pixels.mean())
    known = labels != IGNORE_INDEX
    torch.testing.assert_close(losses["accuracy"], (logits.argmax(1) == labels)[known].float().mean())
