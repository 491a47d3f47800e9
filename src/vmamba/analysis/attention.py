"""SS2D read as attention: how much every token contributes to the output of one token.

The scan of route k is linear in its input once Δ, b and c are known: for output token l and channel d

    y[l, d] = Σ_k Σ_j M_k[l, j, d] x[j, d] + Σ_k D_k[d] x[l, d]
    M_k[l, j, d] = Σ_n c_k[l, n] · exp(A_k[d, n] Σ_{j < i ≤ l} Δ_k[i, d]) · Δ_k[j, d] b_k[j, n]

where j and the tokens i between are those that route k visits up to l; for all others M_k is zero. The sum of Δ is a
cumulative sum against the direction of travel, so one row of M costs one pass over the tokens and the memory of x:
nothing of L × L is ever built. The skip D is a separate diagonal, `Scan.skip`, and not part of the rows.

Source: Liu et al., "VMamba", NeurIPS 2024, section 4.4 and appendix (the relation to attention).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import OptionError
from vmamba.layers.ss2d import SS2D
from vmamba.ops.backends.reference import accumulation_dtype
from vmamba.ops.private_torch import TorchDispatchMode
from vmamba.ops.routes import Route, routes

#: What a row holds. ``exact``: M itself. The others leave out factors, as the authors' figures do: ``with_decay`` is
#: c · decay · b (their "CwBw"), ``without_decay`` c · b (their "CB"), ``decay_only`` the decay (their "ww").
Kind = Literal["exact", "with_decay", "without_decay", "decay_only"]


@dataclass(frozen=True)
class Scan:
    """One route of one SS2D layer on one image: the operands of its recurrence, in image order.

    Attributes:
        name: Of the route: ``"rows"``, ``"columns"``, with ``" backward"`` where it travels against them.
        route: The order of the tokens.
        x: Features (H, W, D).
        low_rank: Input of the projection to Δ, (H, W, R).
        b: (H, W, N).
        c: (H, W, N).
        dt_weight: (D, R).
        dt_bias: (D,).
        A: (D, N), negative.
        skip: D, (D,).
        mirrored: The output is read mirrored along the route's lines, as the authors' cascade does.
    """

    name: str
    route: Route
    x: Tensor
    low_rank: Tensor
    b: Tensor
    c: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    skip: Tensor
    mirrored: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) in tokens."""
        return self.x.shape[0], self.x.shape[1]

    @torch.no_grad()
    def row_per_channel(self, query: tuple[int, int], kind: Kind = "exact") -> Tensor:
        """The row of M of one output token, (H, W, D): zero where the route has not been before it.

        Raises:
            OptionError: For a token outside the grid or an unknown kind.
        """
        height, width = self.grid
        if not (0 <= query[0] < height and 0 <= query[1] < width):
            raise OptionError(f"query {query} is outside the grid of {height}×{width} tokens")
        if kind not in get_args(Kind):
            raise OptionError(f"unknown kind {kind!r}; choose one of {', '.join(get_args(Kind))}")
        if self.mirrored:
            query = (height - 1 - query[0], query[1]) if self.route.columns else (query[0], width - 1 - query[1])
        token = query[0] * width + query[1]
        order = self.route.order(height, width, self.x.device)
        time = int((order == token).nonzero())
        line = self.route.line_length(height, width)
        visited = order[time // line * line : time + 1]  # since the last start from a zero state, l itself included

        channels, states = self.A.shape
        delta = F.softplus(self.low_rank.flatten(0, 1)[visited] @ self.dt_weight.T + self.dt_bias)  # (T, D)
        b, c = self.b.flatten(0, 1)[visited], self.c[query]
        # Σ_{j < i ≤ l} Δ: summed from l backwards, the small sums of near tokens first.
        travelled = F.pad(delta[1:].flip(0).cumsum(0).flip(0), (0, 0, 0, 1))
        row, factor = torch.zeros_like(delta), torch.ones_like(delta)
        for n in range(states):
            if kind != "without_decay":
                torch.mul(travelled, self.A[:, n], out=factor).exp_()
            row.addcmul_(factor, torch.ones_like(b[:, n : n + 1]) if kind == "decay_only" else b[:, n : n + 1] * c[n])
        if kind == "exact":
            row *= delta
        result = row.new_zeros(height * width, channels)
        result[visited] = row / states if kind == "decay_only" else row
        return result.view(height, width, channels)

    def row(self, query: tuple[int, int], kind: Kind = "exact", *, magnitude: bool = False) -> Tensor:
        """`row_per_channel` averaged over the channels, (H, W); of its magnitudes where asked for."""
        row = self.row_per_channel(query, kind)
        return (row.abs() if magnitude else row).mean(-1)


def attention_rows(
    scans: list[Scan],
    query: tuple[int, int],
    kind: Kind = "exact",
    *,
    magnitude: bool = False,
    normalised: bool = False,
) -> Tensor:
    """Rows of all routes of a layer for one output token; their sum over the first axis merges the routes.

    Args:
        scans: See `block_scans`.
        query: (row, column) of the output token.
        kind: See `Kind`.
        magnitude: Average the magnitudes over the channels, which do not cancel, instead of the values.
        normalised: Divide each route's row by the sum of its magnitudes, so that it sums to one as attention does.

    Returns:
        (K, H, W) in the order of the routes.

    Example:
        >>> import vmamba
        >>> model = vmamba.create_model("vmamba_pico").eval()
        >>> scans = block_scans(model, "stages.0.blocks.0", torch.rand(1, 3, 32, 32))
        >>> rows = attention_rows(scans, (3, 4), normalised=True, magnitude=True)
        >>> rows.shape  # four routes, 8×8 tokens
        torch.Size([4, 8, 8])
        >>> torch.testing.assert_close(rows.sum((1, 2)), torch.ones(4))
    """
    rows = torch.stack([scan.row(query, kind, magnitude=magnitude) for scan in scans])
    if normalised:
        rows = rows / rows.abs().sum((1, 2), keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return rows


def ss2d_layers(model: nn.Module) -> dict[str, SS2D]:
    """The SS2D layers of a model by the name of their block, ``"stages.2.blocks.1"``."""
    return {name.removesuffix(".ss2d"): module for name, module in model.named_modules() if isinstance(module, SS2D)}


@torch.no_grad()
def block_scans(model: nn.Module, block: str, image: Tensor) -> list[Scan]:
    """The scans that one block makes of an image.

    Args:
        model: A model with SS2D layers.
        block: A name of `ss2d_layers`.
        image: (1, C, H, W), preprocessed.

    Returns:
        One `Scan` per route. Those of a cascade come in its order: rows and rows backward see the layer's input,
        the columns the normalised sum of what the rows gave; their sum is a picture, not a linear map.

    Raises:
        OptionError: If the model has no such block, or for more than one image.
    """
    layers = ss2d_layers(model)
    if block not in layers:
        raise OptionError(f"no SS2D block {block!r}; the model has {', '.join(layers) or 'none'}")
    if image.shape[0] != 1:
        raise ValueError(f"expected one image, got a batch of {image.shape[0]}")
    features = _input_of(layers[block], model, image)
    with _Recorder() as recorder:
        layers[block](features)
    cascade = layers[block].pattern == "cascade"
    scans = [scan for call in recorder.calls for scan in scans_of(*call)]
    return [dataclasses.replace(scan, mirrored=cascade and scan.route.backward) for scan in scans]


class _ReachedError(Exception):
    """Ends a forward pass that has come far enough."""


def _input_of(layer: nn.Module, model: nn.Module, image: Tensor) -> Tensor:
    """The input of a layer of a model for an image; layers after it do not run."""

    def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _ReachedError(arguments[0])

    hook = layer.register_forward_pre_hook(stop)
    try:
        model(image)
    except _ReachedError as reached:
        features: Tensor = reached.args[0]
        return features
    finally:
        hook.remove()
    raise OptionError(f"the model does not use its layer {type(layer).__name__}")


class _Recorder(TorchDispatchMode):
    """Keeps the arguments of the scans that run inside the context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.vmamba.ss2d_scan.default:
            self.calls.append(args[:7])  # not the backend asked for
        return func(*args, **(kwargs or {}))


def scans_of(
    x: Tensor, dbc: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, dt_bias: Tensor, pattern: str
) -> list[Scan]:
    """The routes of one call of `vmamba.ops.ss2d_scan`, for its first image."""
    dtype = accumulation_dtype(x.dtype)
    x, dbc, dt_weight, A, D, dt_bias = (t.to(dtype) for t in (x[0], dbc[0], dt_weight, A, D, dt_bias))
    rank, states = dt_weight.shape[2], A.shape[2]
    scans = []
    for k, route in enumerate(routes(pattern)):
        low_rank, b, c = dbc[:, :, k].split([rank, states, states], dim=-1)
        name = ("columns" if route.columns else "rows") + (" backward" if route.backward else "")
        scans.append(Scan(name, route, x, low_rank, b, c, dt_weight[k], dt_bias[k], A[k], D[k]))
    return scans
