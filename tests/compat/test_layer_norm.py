from __future__ import annotations

import torch
from torch.nn import functional as F

from vmamba.compat.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn


def test_norms_with_a_residual() -> None:
    x, residual = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    weight, bias = torch.rand(8), torch.rand(8)
    total = x + residual
    torch.testing.assert_close(layer_norm_fn(x, weight, bias, eps=1e-5), F.layer_norm(x, (8,), weight, bias, 1e-5))
    y, kept = layer_norm_fn(x, weight, bias, residual, eps=1e-5, prenorm=True)
    torch.testing.assert_close(y, F.layer_norm(total, (8,), weight, bias, 1e-5))
    assert torch.equal(kept, total)
    by_hand = total / (total.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(rms_norm_fn(x, weight, None, residual), by_hand)
    torch.testing.assert_close(layer_norm_fn(x, weight, bias, residual, is_rms_norm=True), by_hand + bias)


def test_dtypes() -> None:
    norm = RMSNorm(8)
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    y, kept = norm(x, prenorm=True)
    assert (y.dtype, kept.dtype) == (torch.bfloat16, torch.bfloat16)
    y, kept = norm(x, residual=x, prenorm=True, residual_in_fp32=True)
    assert (y.dtype, kept.dtype) == (torch.bfloat16, torch.float32)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
    assert norm.bias is None
