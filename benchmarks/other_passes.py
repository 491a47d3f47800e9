"""What a forward pass of a model does beside its scans, and the least time for it. Needs no GPU.

Traced on tensors without data, as on a GPU. Every operator reads its operands and writes its results once, at the peak
of the memory; matrix products and convolutions take no less than their multiplications do on the tensor cores.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import vmamba

#: What operators are; all others are pointwise.
KINDS = {"mm": "products", "addmm": "products", "convolution": "convolutions", "native_layer_norm": "norms"}
#: They move nothing.
FREE = {"_unsafe_view", "as_strided_"}


@dataclass(frozen=True)
class Pass:
    """One operator.

    Attributes:
        kind: "products", "convolutions", "norms" or "pointwise".
        bytes: Of its operands and results.
        flops: Of its products.
    """

    kind: str
    bytes: int
    flops: int


class _Passes(TorchDispatchMode):
    """Every operator of PyTorch's that runs within."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Pass] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        space, name = func.name().split(".")[0].split("::")
        if space == "aten" and not func.is_view and name not in FREE:
            count = flop_registry.get(func.overloadpacket)
            size = sum(t.nbytes for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor))
            flops = count(*args, **kwargs, out_val=result) if count else 0
            self.found.append(Pass(KINDS.get(name, "pointwise"), size, flops))
        return result


def passes(model: nn.Module, images: Tensor) -> list[Pass]:
    """Of one call of a model."""
    with torch.no_grad(), _Passes() as mode:
        model(images)
    return mode.found


def other_passes(name: str, size: int, batch: int) -> list[Pass]:
    """Of inference in bfloat16 with square images on a GPU, all but the scans."""
    model = vmamba.create_model(name, device="meta").bfloat16().eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(batch, 3, size, size, dtype=torch.bfloat16, device="cuda")
        return passes(model.to_empty(device="cuda"), images)


def bounds(found: list[Pass], terabytes: float, teraflops: float) -> Counter[str]:
    """Lower bound of each kind in milliseconds, from figures per second."""
    times: Counter[str] = Counter()
    for each in found:
        times[each.kind] += max(each.bytes / terabytes, each.flops / teraflops) / 1e9  # type: ignore[assignment]
    return times
