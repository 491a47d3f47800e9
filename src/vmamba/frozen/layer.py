"""Layers whose weights nobody can reach, hook or change: `FusedLayer` and `SealedLayer`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vmamba.frozen.immutable import Immutable, read_only_copy
from vmamba.ops.packed import can_pack, for_packed, pack_convolution, pack_linear, packed_linear

#: Name of a layer inside another → types that it may have.
Parts = Mapping[str, tuple[type, ...]]


class FusedLayer(Immutable):
    """A layer computed in another way than by calling the layers inside it.

    A subclass names in `expected` what it can replace. In `pack` it brings the operands of its ``forward`` into
    whatever form its kernels like, by name in ``packed``; that is done again after unpickling.

    Args:
        layer: The original, in evaluation mode. Its tensors are taken over.
        precision: Of its products on a CPU, one of `vmamba.ops.PRECISIONS`.

    Attributes:
        expected: The parts of an original that can be replaced.
        tensors: The entries of the original's state dict.
    """

    expected: ClassVar[Parts] = {}

    def __init__(self, layer: nn.Module, precision: str) -> None:
        super().__init__()
        self.tensors = {name: tensor.detach() for name, tensor in layer.state_dict().items()}
        self.buffers_inside = {name for name, _ in layer.named_buffers()}
        self.precision = precision
        self.training = False

    @classmethod
    def refusal(cls, layer: Any) -> str | None:
        """The reason why a layer has to be called as it is, if there is one."""
        if any(type(parameter) is not nn.Parameter for parameter in layer.parameters()):
            return "its weights are in another format"
        return cls.unexpected(layer, cls.expected)

    @staticmethod
    def unexpected(layer: nn.Module, expected: Parts) -> str | None:
        """The first part of a layer that is not of the types expected, if there is one."""
        for name, types in expected.items():
            part = attrgetter(name)(layer)
            if type(part) not in types:
                return f"{name} is a {type(part).__name__}"
        return None

    @property
    def summary(self) -> str:
        """One word or two on how it is computed."""
        return "packed" if self.is_packable() else "fused"

    def hidden_tensors(self) -> Mapping[str, Tensor]:
        return self.tensors

    def buffer_names(self) -> set[str]:
        return self.buffers_inside

    def affine(self, name: str) -> tuple[Tensor, Any]:
        """Weight and bias, which may be None, of a layer inside the original."""
        return self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")

    def is_packable(self) -> bool:
        """True if its products can be of packed weights: float32, for the CPU, the kernels there."""
        return is_packable(self.tensors.values())

    def is_packed(self, x: Tensor) -> bool:
        """True if packed weights are for these tokens."""
        return len(self.packed) > 0 and for_packed(x)

    def pack_layer(self, name: str, norm: str | None = None) -> Tensor:
        """The packed weights of a linear layer or a convolution, and of a LayerNorm before it."""
        weight, bias = self.affine(name)
        if weight.ndim == 4:
            return pack_convolution(weight, bias, self.precision)
        return pack_linear(weight, bias, self.precision, None if norm is None else self.affine(norm))

    def linear(self, x: Tensor, name: str, **options: Any) -> Tensor:
        """A linear layer with packed weights; options as for `packed_linear`."""
        return packed_linear(x, self.packed[name], len(self.tensors[f"{name}.weight"]), self.precision, **options)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + name: tensor for name, tensor in self.tensors.items()})


class SealedLayer(Immutable):
    """Any other layer, called as it is, but out of reach; its attributes, and copies of its tensors, can be read."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # not as a child
        self.training = False

    def hidden_tensors(self) -> Mapping[str, Tensor]:
        return self.__dict__["layer"].state_dict()

    def buffer_names(self) -> set[str]:
        return {name for name, _ in self.__dict__["layer"].named_buffers()}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "layer" not in self.__dict__:
            raise AttributeError(name)
        value = getattr(self.__dict__["layer"], name)
        if isinstance(value, nn.Module):
            raise AttributeError(f"{name} is inside a frozen layer")
        return read_only_copy(value) if isinstance(value, Tensor) else value

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.__dict__["layer"](*arguments, **options)

    def extra_repr(self) -> str:
        return repr(self.__dict__["layer"])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + name: tensor for name, tensor in self.hidden_tensors().items()})


def is_packable(tensors: Iterable[Tensor]) -> bool:
    """True if these weights can be packed: float32, for the CPU, the kernels there."""
    fits = all(t.dtype == torch.float32 for t in tensors if t.is_floating_point())
    return fits and all(t.device.type == "cpu" for t in tensors) and can_pack() is None
