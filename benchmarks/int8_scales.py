"""Scales of int8 activations: each token's own, as frozen models have them, or calibrated ones that stay.

    python benchmarks/int8_scales.py --checkpoint runs/digits/weights/model.safetensors --images digits/val

Accuracy is simulated in float32: the inputs of linear layers and dense convolutions are rounded to 8 bits, weights to 8
bits by output channel. Calibrated scales are of a layer's whole input, from every second image (its range, or the
range without 0.1 % of the values); all are judged on the other images. Speed: the part of a product that is spent on
finding scales and rounding rows is all that calibrated scales could save a part of.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cpu import OURS, STAGES
from paired import alternate
from torch import Tensor, nn

import vmamba
from vmamba.frozen import compare
from vmamba.frozen.comparison import batches
from vmamba.ops.packed import pack_linear, packed_linear
from vmamba.zoo import model_from_checkpoint

Range = tuple[Tensor, Tensor]


def rounded(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """To 8 bits between two values, 0 among them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / scale).round()
    return ((x / scale + zero).round().clamp(0, 255) - zero) * scale


def of_token(layer: nn.Module, x: Tensor) -> Range:
    """Of each token; of a convolution, of each image, which is more than frozen models do."""
    dims = (1, 2, 3) if isinstance(layer, nn.Conv2d) else (-1,)
    return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)


def products(model: nn.Module) -> list[Any]:
    """Layers that int8 reaches; the first convolution is float32."""
    layers = (m for m in model.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1))
    return list(layers)[1:]


def simulate(model: nn.Module, ranges: Callable[[nn.Module, Tensor], Range]) -> list[Any]:
    """Round inputs within ranges; returns handles that undo it."""
    return [
        layer.register_forward_pre_hook(lambda layer, args: (rounded(args[0], *ranges(layer, args[0])),))
        for layer in products(model)
    ]


def calibrated(model: nn.Module, images: list[Tensor], outliers: float) -> Callable[[nn.Module, Tensor], Range]:
    """Ranges of every layer's input over images, without a fraction of outliers at both ends."""
    seen: dict[nn.Module, list[Tensor]] = {layer: [] for layer in products(model)}

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        values = args[0].flatten().sort().values
        cut = int(outliers / 2 * len(values))
        seen[layer].append(torch.stack([values[cut], values[-1 - cut]]))

    handles = [layer.register_forward_pre_hook(note) for layer in seen]
    for image in images:
        model(image)
    for handle in handles:
        handle.remove()
    ranges = {}
    for layer, values in seen.items():
        low, high = torch.stack(values).unbind(1)
        ranges[layer] = (low.mean(), high.mean()) if outliers else (low.min(), high.max())
    return lambda layer, x: ranges[layer]


@torch.inference_mode()
def accuracy(checkpoint: Path, folder: Path) -> None:
    images = list(batches(model_from_checkpoint(checkpoint, in_chans=3).eval(), folder))
    half, others = images[::2], images[1::2]
    original = model_from_checkpoint(checkpoint, in_chans=3).eval()
    print(f"{checkpoint}: {len(half)} images to calibrate, {len(others)} to judge")
    print(f"  frozen int8: {compare(original, vmamba.freeze(original, 'int8'), others)}")
    for name, outliers in (("each token's own", None), ("calibrated", 0.0), ("calibrated, 0.1 % outliers", 1e-3)):
        model = model_from_checkpoint(checkpoint, in_chans=3).eval()
        for layer in products(model):
            weight = layer.weight.flatten(1)
            scale = weight.abs().amax(1, keepdim=True) / 127
            layer.weight.data = ((weight / scale).round() * scale).view_as(layer.weight)
        simulate(model, of_token if outliers is None else calibrated(model, half, outliers))
        print(f"  {name}: {compare(original, model, others)}")


def speed(rounds: int) -> None:
    """Time of the int8 products of a block, and of the same rows with the fewest columns."""
    for size, channels, _, _ in STAGES:
        x = torch.randn(1, size, size, channels)
        for inputs, outputs in ((channels, channels), (channels, 4 * channels), (4 * channels, channels)):
            rows = x.repeat(1, 1, 1, inputs // channels)
            cases = {}
            for columns in (outputs, 16):
                packed = pack_linear(torch.randn(columns, inputs), None, "int8")
                cases[str(columns)] = lambda p=packed, c=columns, r=rows: packed_linear(r, p, c, "int8")
            whole, rounding = (t.median for t in alternate(cases, rounds, warmup=3).values())
            print(
                f"  {size}²: {inputs} → {outputs}: {whole * 1e3:.3f} ms, of which rows at most {rounding / whole:.0%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[], help="trained classifiers")
    parser.add_argument("--images", type=Path, nargs="+", default=[], help="a folder for each")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for checkpoint, folder in zip(options.checkpoint, options.images, strict=True):
        accuracy(checkpoint, folder)
    print(f"products of {OURS}, batch 1, {options.threads} thread:")
    speed(options.rounds)


if __name__ == "__main__":
    main()
