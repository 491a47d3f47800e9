"""The authors' cross scan functions against index maps, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vmamba.compat.cross_scan
from vmamba.compat.cross_scan import cross_merge_fn, cross_scan_fn
from vmamba.ops.routes import routes

cross_scan: Any = vmamba.compat.cross_scan  # its classes are made at import

H, W, C = 3, 5, 2
layouts = pytest.mark.parametrize(("into", "out"), [(True, True), (True, False), (False, True), (False, False)])
scans = pytest.mark.parametrize("mode", [0, 1, 2])


def orders(mode: int) -> list[Tensor]:
    return [route.order(H, W) for route in routes(cross_scan.PATTERNS[mode])]


@scans
@layouts
@pytest.mark.parametrize("one_by_one", [False, True])
def test_scan(into: bool, out: bool, mode: int, one_by_one: bool) -> None:
    maps = torch.randn(2, 4 if one_by_one else 1, C, H, W)
    expected = torch.stack([maps[:, k % maps.shape[1]].flatten(2)[..., o] for k, o in enumerate(orders(mode))], dim=1)
    x = maps if one_by_one else maps[:, 0]
    y = cross_scan_fn(x if into else x.movedim((-2, -1), (1, 2)), into, out, one_by_one, mode)
    assert torch.equal(y, expected if out else expected.permute(0, 3, 1, 2))


@scans
@layouts
@pytest.mark.parametrize("one_by_one", [False, True])
def test_merge(into: bool, out: bool, mode: int, one_by_one: bool) -> None:
    y = torch.randn(2, 4, C, H * W, dtype=torch.float64)
    back = torch.stack([torch.empty_like(y[:, k]).index_copy(2, o, y[:, k]) for k, o in enumerate(orders(mode))], dim=1)
    expected = back if one_by_one else back.sum(1)
    sequences = y.unflatten(-1, (H, W))
    x = cross_merge_fn(sequences if out else sequences.movedim((-2, -1), (1, 2)), into, out, one_by_one, mode)
    torch.testing.assert_close(x, expected if into else expected.movedim(-1, 1))


def test_merge_is_the_adjoint_of_scan() -> None:
    x = torch.randn(2, C, H, W, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, 4, C, H * W, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(cross_scan_fn(x), x, cotangent)
    torch.testing.assert_close(gradient.flatten(2), cross_merge_fn(cotangent.unflatten(-1, (H, W))))


def test_names_of_all_generations() -> None:
    x, maps, y = torch.randn(2, C, H, W), torch.randn(2, 4, C, H, W), torch.randn(2, 4, C, H, W)
    for name in ("CrossScanTriton", "CrossScanTritonF", "CrossScanF"):
        assert torch.equal(getattr(cross_scan, name).apply(x), cross_scan_fn(x))
    for name in ("CrossMergeTriton", "CrossMergeTritonF", "CrossMergeF"):
        assert torch.equal(getattr(cross_scan, name).apply(y), cross_merge_fn(y))
    for name in ("CrossScanTriton1b1", "CrossScanTriton1b1F"):
        assert torch.equal(getattr(cross_scan, name).apply(maps), cross_scan_fn(maps, one_by_one=True))
    last = maps.permute(0, 3, 4, 1, 2)
    same = cross_scan.CrossScanTriton1b1F.apply(last, False)
    assert torch.equal(same, cross_scan_fn(maps, one_by_one=True))
    assert torch.equal(cross_scan.CrossMergeTritonF.apply(y, False), cross_merge_fn(y, in_channel_first=False))
    scan, merge = cross_scan.getCSM(2)
    assert torch.equal(scan.apply(x), cross_scan_fn(x, scans=2))
    assert torch.equal(merge.apply(y), cross_merge_fn(y, scans=2))
    with pytest.raises(ValueError, match="scans must be 0"):
        cross_scan_fn(x, scans=3)
