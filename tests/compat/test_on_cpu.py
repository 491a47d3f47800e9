from __future__ import annotations

import pytest
import torch
from torch import nn

from vmamba.compat import on_cpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there is nothing to replace")
def test_cuda_means_cpu_inside_the_block() -> None:
    x, layer = torch.ones(2), nn.Linear(2, 2)
    usual = torch.cuda.device
    with on_cpu():
        assert x.cuda() is x
        assert x.cuda(0, non_blocking=True) is x
        assert layer.cuda() is layer
        assert layer.to("cuda:1") is layer
        made = [
            x.to("cuda"),
            x.to(0),
            x.to(device=torch.device("cuda")),
            x.to(torch.device("cuda", 1), torch.float64),
            torch.zeros(2, device="cuda"),
            torch.empty_like(x, device=torch.device("cuda")),
            layer.weight,
        ]
        assert all(t.device.type == "cpu" for t in made)
        assert made[3].dtype == torch.float64
        assert x.to(torch.bfloat16).dtype == torch.bfloat16
        assert x.to("meta").device.type == "meta"
        with torch.cuda.device(x.device):
            pass
        layer(x.cuda()).sum().backward()
    assert layer.weight.grad is not None
    assert torch.cuda.device is usual
    with pytest.raises((RuntimeError, AssertionError)):
        x.cuda()


def test_the_way_back_after_an_error() -> None:
    usual = torch.cuda.device
    with pytest.raises(KeyError), on_cpu():
        raise KeyError
    assert torch.cuda.device is usual
