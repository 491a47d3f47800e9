"""The two files that a page needs of a model: its results with the operands of its scans, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from vmamba.analysis.attention import Scan, block_scans, ss2d_layers
from vmamba.errors import ExportError, OptionError
from vmamba.explorer.gradient import gradient_decompositions
from vmamba.export import export
from vmamba.export.onnx import translate
from vmamba.layers import Block
from vmamba.ort import session

#: What the rows of a block are computed from: Δ (B, H, W, K, D), b and c (B, H, W, K, N), A (K, D, N).
OPERANDS = ("delta", "b", "c", "A")
#: Largest relative error in norm of gradients against PyTorch's.
TOLERANCE = 1e-4


class OperandModel(nn.Module):
    """A classifier that also returns what its scans are given: logits, then `OPERANDS` of every block, in order.

    Args:
        model: A classifier with SS2D layers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """[logits, Δ, b, c, A, Δ, …] of images (B, C, H, W)."""
        layers = list(ss2d_layers(self.model).values())
        calls: list[list[tuple[Any, ...]]] = [[] for _ in layers]
        with _hooks([layer.scan for layer in layers], lambda i, arguments, _: calls[i].append(arguments)):
            results = [self.model(images)]
        for block in calls:
            operands = zip(*(_operands(*call) for call in block), strict=True)  # a cascade calls once for every route
            results += [torch.cat(parts, dim) for parts, dim in zip(operands, (3, 3, 3, 0), strict=True)]
        return results


def _operands(
    _x: Tensor,
    dbc: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    _D: Tensor,
    dt_bias: Tensor,
    _pattern: str,
    first: int = 0,
    end: int = 4,
) -> tuple[Tensor, ...]:
    """`OPERANDS` of one call of `vmamba.layers.scan.SelectiveScan2d`."""
    rank, states = dt_weight.shape[2], A.shape[2]
    low_rank, b, c = dbc[..., first:end, :].split([rank, states, states], dim=-1)
    z = torch.einsum("bhwkr,kdr->bhwkd", low_rank, dt_weight[first:end]) + dt_bias[first:end]
    return F.softplus(z), b, c, A[first:end]


def write_operand_model(model: nn.Module, path: Path, image_size: int) -> dict[str, list[Scan]]:
    """Write a classifier with the operands of its scans as further results, compared with PyTorch's.

    Args:
        model: See `OperandModel`.
        path: The file. It takes ``images`` (1, C, S, S) and gives ``logits`` and, for every block, ``NAME.delta``,
            ``NAME.b``, ``NAME.c`` and ``NAME.A``.
        image_size: S, in pixels.

    Returns:
        The scans of every block, of an empty image.

    Raises:
        OptionError: If the model has no SS2D layer, or one with routes of its own.
        ExportError: If the file would not agree with PyTorch.
    """
    images = torch.zeros(1, 3, image_size, image_size)
    scans = {name: block_scans(model, name, images) for name in ss2d_layers(model)}
    if not scans or not all(scans.values()):
        raise OptionError(f"{type(model).__name__} is no classifier of SS2D layers with VMamba's routes")
    names = [f"{block}.{operand}" for block in scans for operand in OPERANDS]
    export(
        OperandModel(model).eval(),
        path,
        image_size=image_size,
        dynamic=(),
        output_names=["logits", *names],
        metadata={},
    )
    return scans


class ReceptiveFieldModel(nn.Module):
    """Gradient of sums over the outputs of blocks with respect to the image, as in `vmamba.analysis.erf`.

    Args:
        model: A model of `Block`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.blocks = [module for module in model.modules() if isinstance(module, Block)]

    def forward(self, images: Tensor, *tokens: Tensor) -> Tensor:
        """(1, C, H, W): the gradient of the channel sums of all blocks' outputs, weighted by token.

        Args:
            images: (1, C, H, W).
            tokens: Weights (1, h, w, 1) of the tokens of every block.
        """
        pixels = images.detach().requires_grad_()
        with torch.enable_grad():
            maps = self._maps(pixels)
            weighted = [(features * weight).sum() for features, weight in zip(maps, tokens, strict=True)]
            (gradient,) = torch.autograd.grad(torch.stack(weighted).sum(), pixels)
        return gradient

    def grids(self, images: Tensor) -> list[tuple[int, ...]]:
        """(h, w) of every block."""
        return [tuple(features.shape[1:3]) for features in self._maps(images)]

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        with _hooks(self.blocks, lambda _, __, output: maps.append(output)):
            self.model(images)
        return maps


def write_receptive_field_model(model: nn.Module, path: Path, image_size: int) -> None:
    """Write the gradient of `ReceptiveFieldModel`, compared with PyTorch's.

    Args:
        model: In evaluation mode.
        path: The file. It takes ``images`` (1, C, S, S) and the weights ``token0``, ``token1`` … (1, h, w, 1) of the
            blocks' tokens, and gives ``gradient`` (1, C, S, S).
        image_size: S, in pixels.

    Raises:
        ExportError: If the file would not agree with PyTorch.
    """
    module = ReceptiveFieldModel(model)
    parameters = list(model.parameters())
    trainable = [parameter.requires_grad for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, image_size, image_size, generator=generator)
    try:
        model.requires_grad_(False)  # or their gradients are traced, too
        tokens = [torch.randn(1, *grid, 1, generator=generator) for grid in module.grids(images)]
        expected = module(images, *tokens)
        graph = make_fx(module, decomposition_table=gradient_decompositions())(images, *tokens)
    finally:
        for parameter, needed in zip(parameters, trainable, strict=True):
            parameter.requires_grad_(needed)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    names = ["images", *(f"token{i}" for i in range(len(tokens)))]
    file = translate(graph, (images, *tokens), names, ["gradient"])
    feeds = dict(zip(names, (tensor.numpy() for tensor in (images, *tokens)), strict=True))
    (gradient,) = session(file.proto, kernels=False).run(None, feeds)
    error = float((torch.from_numpy(gradient) - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise ExportError(f"the exported gradient differs from PyTorch's by {error:.1e}; nothing was written")
    file.write(path)


@contextmanager
def _hooks(modules: Sequence[nn.Module], see: Callable[[int, tuple[Any, ...], Any], object]) -> Iterator[None]:
    """Inside, `see` is called with the number, the arguments and the output of every module that is called."""

    def hook(i: int) -> Callable[..., None]:
        def call(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            see(i, arguments, output)

        return call

    handles = [module.register_forward_hook(hook(i)) for i, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
