"""The authors' `csm_triton` functions: copy a map along the four routes, and sum four maps back.

Networks call them around a scan of their own; our `ss2d_scan` needs no such copies. All is views, flips and one
stack or sum, so it runs on any device. Layouts: "channel first" is (B, C, H, W) or (B, 4, C, H, W) for maps and
(B, 4, C, L) for sequences; otherwise (B, H, W, C), (B, H, W, 4, C) and (B, L, 4, C).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vmamba.ops.routes import Route, routes

#: Scan patterns by the authors' numbers.
PATTERNS = ("cross", "unidirectional", "bidirectional")


def cross_scan_fn(
    x: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int = 0,
    force_torch: bool = False,
) -> Tensor:
    """Lay a map out along the four routes.

    Args:
        x: One map for all routes, or with `one_by_one` a map for each.
        in_channel_first: Layout of x.
        out_channel_first: Layout of the result.
        one_by_one: Whether x has a map for each route.
        scans: 0 cross, 1 unidirectional, 2 bidirectional.
        force_torch: Accepted and not needed.

    Returns:
        Sequences (B, 4, C, L), or (B, L, 4, C).
    """
    if not in_channel_first:
        x = x.movedim((1, 2), (-2, -1))
    maps = x.unbind(1) if one_by_one else (x,) * 4
    sequences = torch.stack([_along(route, t) for route, t in zip(_routes(scans), maps, strict=True)], dim=1)
    return sequences if out_channel_first else sequences.permute(0, 3, 1, 2).contiguous()


def cross_merge_fn(
    y: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int = 0,
    force_torch: bool = False,
) -> Tensor:
    """The adjoint of `cross_scan_fn`: bring the four sequences back into image order and sum them.

    Args:
        y: Sequences, their length written as H × W: (B, 4, C, H, W), or (B, H, W, 4, C) unless `out_channel_first`.
        in_channel_first: Layout of the result (of what `cross_scan_fn` took in).
        out_channel_first: Layout of y (of what `cross_scan_fn` gave out).
        one_by_one: Do not sum.
        scans: 0 cross, 1 unidirectional, 2 bidirectional.
        force_torch: Accepted and not needed.

    Returns:
        (B, C, L) or (B, L, C); with `one_by_one` (B, 4, C, L) or (B, L, 4, C).
    """
    if not out_channel_first:
        y = y.movedim((1, 2), (-2, -1))
    height, width = y.shape[-2:]
    maps = [_back(route, t.flatten(-2), height, width) for route, t in zip(_routes(scans), y.unbind(1), strict=True)]
    merged = torch.stack(maps, dim=1) if one_by_one else maps[0] + maps[1] + maps[2] + maps[3]
    return merged if in_channel_first else merged.movedim(-1, 1).contiguous()


def _routes(scans: int) -> tuple[Route, ...]:
    if scans not in range(len(PATTERNS)):
        raise ValueError(f"scans must be 0 (cross), 1 (unidirectional) or 2 (bidirectional), got {scans!r}")
    return routes(PATTERNS[scans])


def _along(route: Route, t: Tensor) -> Tensor:
    """(B, C, H, W) in image order → (B, C, L) in the order of the visit."""
    t = (t.transpose(-2, -1) if route.columns else t).flatten(-2)
    return t.flip(-1) if route.backward else t


def _back(route: Route, t: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `_along`, flat: (B, C, L) → (B, C, L)."""
    t = t.flip(-1) if route.backward else t
    return t.unflatten(-1, (width, height)).transpose(-2, -1).flatten(-2) if route.columns else t


# --------------------------------------------------------------------------------------------------------------------
# The names that the authors gave to these two over the generations of their file.


def cross_scan_fwd(x: Tensor, in_channel_first: bool = True, out_channel_first: bool = True, scans: int = 0) -> Tensor:
    """`cross_scan_fn` of one map."""
    return cross_scan_fn(x, in_channel_first, out_channel_first, False, scans)


def cross_merge_fwd(y: Tensor, in_channel_first: bool = True, out_channel_first: bool = True, scans: int = 0) -> Tensor:
    """`cross_merge_fn`, summed."""
    return cross_merge_fn(y, in_channel_first, out_channel_first, False, scans)


def cross_scan1b1_fwd(
    x: Tensor, in_channel_first: bool = True, out_channel_first: bool = True, scans: int = 0
) -> Tensor:
    """`cross_scan_fn` of a map for each route."""
    return cross_scan_fn(x, in_channel_first, out_channel_first, True, scans)


def cross_merge1b1_fwd(
    y: Tensor, in_channel_first: bool = True, out_channel_first: bool = True, scans: int = 0
) -> Tensor:
    """`cross_merge_fn`, not summed."""
    return cross_merge_fn(y, in_channel_first, out_channel_first, True, scans)


def _function(name: str, apply: Callable[..., Tensor]) -> type:
    """A class with `apply`, all that is used of an autograd function."""
    return type(name, (), {"apply": staticmethod(apply), "__doc__": apply.__doc__, "__module__": __name__})


def _scan_one_by_one(x: Tensor, channel_first: bool = True) -> Tensor:
    """`cross_scan_fn` of a map for each route."""
    return cross_scan_fn(x, channel_first, True, one_by_one=True)


CrossScanF = _function("CrossScanF", cross_scan_fn)
CrossMergeF = _function("CrossMergeF", cross_merge_fn)
CrossScanTritonF = _function("CrossScanTritonF", cross_scan_fn)
CrossMergeTritonF = _function("CrossMergeTritonF", cross_merge_fn)
CrossScanTriton1b1F = _function("CrossScanTriton1b1F", _scan_one_by_one)
CrossScanTriton = _function("CrossScanTriton", cross_scan_fwd)
CrossMergeTriton = _function("CrossMergeTriton", cross_merge_fwd)
CrossScanTriton1b1 = _function("CrossScanTriton1b1", cross_scan1b1_fwd)


def getCSM(mode: int = 1) -> tuple[type, type]:
    """The pair of scan and merge for `scans` = mode."""

    def scan(x: Tensor) -> Tensor:
        return cross_scan_fwd(x, scans=mode)

    def merge(y: Tensor) -> Tensor:
        return cross_merge_fwd(y, scans=mode)

    return _function("CrossScanTriton", scan), _function("CrossMergeTriton", merge)


__all__ = [
    "CrossMergeF",
    "CrossMergeTriton",
    "CrossMergeTritonF",
    "CrossScanF",
    "CrossScanTriton",
    "CrossScanTriton1b1",
    "CrossScanTriton1b1F",
    "CrossScanTritonF",
    "cross_merge1b1_fwd",
    "cross_merge_fn",
    "cross_merge_fwd",
    "cross_scan1b1_fwd",
    "cross_scan_fn",
    "cross_scan_fwd",
    "getCSM",
]
