"""UperNet's heads against those of transformers, which have the same entries."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from vmamba.tasks.segmentation.heads import DROPOUT, FCNHead, UperNetDecoder

DIMS, CHANNELS, CLASSES = (5, 7, 11, 13), 6, 4


def settings(pool_scales: tuple[int, ...]) -> transformers.UperNetConfig:
    return transformers.UperNetConfig(
        hidden_size=CHANNELS, pool_scales=list(pool_scales), num_labels=CLASSES, auxiliary_channels=CHANNELS
    )


def randomise(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2) if name.endswith("running_var") else tensor.normal_(std=0.5)


@pytest.mark.parametrize("size", [(32, 32), (37, 101), (3, 60), (1, 1)])
@pytest.mark.parametrize("pool_scales", [(1, 2, 3, 6), (1,), (4, 2)])
def test_decoder(size: tuple[int, int], pool_scales: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theirs = UperNetHead(settings(pool_scales), DIMS).double().eval()
    randomise(theirs)
    ours = UperNetDecoder(DIMS, CHANNELS, CLASSES, pool_scales).double().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())  # the order is that of optimiser states
    ours.load_state_dict(theirs.state_dict())
    maps = [torch.randn(2, dim, *(-(-s // 2**i) for s in size)).double().requires_grad_() for i, dim in enumerate(DIMS)]
    logits, expected = ours(maps), theirs(maps)
    assert logits.shape == (2, CLASSES, *size)
    torch.testing.assert_close(logits, expected)
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(logits, maps, cotangent)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, maps, cotangent))


def test_auxiliary_head() -> None:
    torch.manual_seed(0)
    theirs = UperNetFCNHead(settings((1,)), DIMS, in_index=2).double().eval()
    randomise(theirs)
    ours = FCNHead(DIMS, CHANNELS, CLASSES).double().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    maps = [torch.randn(2, dim, 9, 14).double() for dim in DIMS]
    torch.testing.assert_close(ours(maps), theirs(maps))


def test_whole_channels_are_dropped_before_the_classifier_in_training() -> None:
    torch.manual_seed(0)
    head = FCNHead([3], 1000, 1, level=0).train()
    seen: list[torch.Tensor] = []
    head.classifier.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    head([torch.randn(4, 3, 8, 8)])
    (x,) = seen
    dropped = (x == 0).flatten(2).all(2).float().mean()
    assert dropped == pytest.approx(DROPOUT, abs=0.02)
    head.eval()([torch.randn(4, 3, 8, 8)])
    assert not (seen[1] == 0).flatten(2).all(2).any()
