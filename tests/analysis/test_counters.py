"""Counters of other packages, given our formula for the scan, agree with ours."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from vmamba.analysis.cost import cost
from vmamba.analysis.counters import PTFLOPS, THOP


@pytest.fixture(params=["vmamba_tiny_s1l8", "vanilla_vmamba_tiny", "vmamba_pico"])
def model(request: pytest.FixtureRequest) -> Any:
    return timm.create_model(request.param).eval()


def macs(model: nn.Module) -> int:
    return cost(model, (64, 96))[0].total_macs


@pytest.mark.filterwarnings("ignore:distutils Version classes are deprecated")
def test_thop(model: Any) -> None:
    from thop import profile

    expected = macs(model)
    counted, _ = profile(model, (torch.randn(1, 3, 64, 96),), custom_ops=THOP, verbose=False)
    assert counted == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("backend", ["pytorch", "aten"])
def test_ptflops(model: Any, backend: str) -> None:
    from ptflops import get_model_complexity_info

    counted, _ = get_model_complexity_info(
        model,
        (3, 64, 96),
        as_strings=False,
        print_per_layer_stat=False,
        backend=backend,
        custom_modules_hooks=PTFLOPS[backend],
    )
    assert counted == pytest.approx(macs(model), rel=0.02)
