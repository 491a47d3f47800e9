"""`FrozenBlock`: a block in the operators that compute several of its layers at once."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from vmamba.frozen.layer import FusedLayer, Parts
from vmamba.layers import SS2D, Block, Mlp
from vmamba.layers.layout import check_tokens
from vmamba.layers.scan import SelectiveScan2d, negative_exp
from vmamba.ops import depthwise_silu, packed_block, pointwise, pointwise_branch, ss2d_scan

_FUNCTIONS: dict[type[nn.Module], Any] = {
    nn.SiLU: F.silu,
    nn.GELU: F.gelu,
    nn.ReLU: F.relu,
    nn.Sigmoid: torch.sigmoid,
    nn.Identity: lambda x: x,
}
_ABSENT, _DROP_PATH = type(None), (DropPath, nn.Identity)


class FrozenBlock(FusedLayer):
    """`Block` without gradient, (B, H, W, dim) → (B, H, W, dim).

    On a CPU all of it is one operator, unless it has options that few models have. Elsewhere norm1 and in_proj are one;
    convolution and SiLU are one on a GPU; out_norm, out_proj and the residual are one unless there is a gate; so is the
    whole MLP with its norm and residual.
    """

    expected: ClassVar[Parts] = {
        "norm1": (nn.LayerNorm,),
        "ss2d": (SS2D,),
        "ss2d.in_proj": (nn.Linear,),
        "ss2d.conv": (nn.Conv2d, nn.Identity),
        "ss2d.act": tuple(_FUNCTIONS),
        "ss2d.gate_act": (*_FUNCTIONS, _ABSENT),
        "ss2d.x_proj": (nn.Linear,),
        "ss2d.scan": (SelectiveScan2d,),
        "ss2d.out_norm": (nn.LayerNorm,),
        "ss2d.out_act": (nn.Identity,),
        "ss2d.out_proj": (nn.Linear,),
        "drop_path1": _DROP_PATH,
        "mlp": (Mlp, _ABSENT),
    }
    expected_in_mlp: ClassVar[Parts] = {
        "norm2": (nn.LayerNorm,),
        "mlp.fc1": (nn.Linear,),
        "mlp.act": (nn.GELU,),
        "mlp.fc2": (nn.Linear,),
        "drop_path2": _DROP_PATH,
    }

    def __init__(self, block: Block, precision: str) -> None:
        super().__init__(block, precision)
        ss2d = block.ss2d
        self.dim, self.pattern, self.routes = block.dim, ss2d.pattern, ss2d.routes
        self.act = type(ss2d.act)
        self.gate_act = None if ss2d.gate_act is None else type(ss2d.gate_act)
        self.has_mlp = block.mlp is not None
        self.kernel_size = ss2d.conv.kernel_size[0] if isinstance(ss2d.conv, nn.Conv2d) else 0
        norms: Any = {"norm1": block.norm1, "ss2d.out_norm": ss2d.out_norm}
        norms |= {"norm2": block.norm2} if self.has_mlp else {}
        self.eps: dict[str, float] = {name: norm.eps for name, norm in norms.items()}
        #: One operator on a CPU.
        self.is_whole = not self._others()

    @classmethod
    def refusal(cls, layer: Any) -> str | None:
        reason = super().refusal(layer)
        if reason is None and layer.mlp is not None:
            reason = cls.unexpected(layer, cls.expected_in_mlp)
        return reason

    @property
    def summary(self) -> str:
        if not self.is_packable():
            return "fused"
        return "one operator" if self.is_whole else f"packed, several operators: {' and '.join(self._others())}"

    def _others(self) -> list[str]:
        """Options that the one operator does not have."""
        options = {
            "a gate": self.gate_act is not None,
            f"{self.act.__name__} after the convolution": self.act is not nn.SiLU,
            f"a convolution of {self.kernel_size}×{self.kernel_size}": self.kernel_size not in (0, 3),
            "no convolution": self.kernel_size == 0,
            "a cascade": self.pattern == "cascade",
        }
        return [name for name, given in options.items() if given]

    def pack(self) -> None:
        self.A = negative_exp(self.tensors["ss2d.A_log"])
        self.packed: dict[str, Tensor] = {}
        if not self.is_packable():
            return
        norms = {"ss2d.in_proj": "norm1", "ss2d.x_proj": None, "ss2d.out_proj": "ss2d.out_norm"}
        norms |= {"mlp.fc1": "norm2", "mlp.fc2": None} if self.has_mlp else {}
        if self.gate_act is not None:  # it comes between out_norm and out_proj
            norms["ss2d.out_proj"] = None
        self.packed |= {name: self.pack_layer(name, norm) for name, norm in norms.items()}
        if self.is_whole:
            weight, bias = self.affine("ss2d.conv")
            self.packed["conv.weight"] = weight.flatten(1).T.contiguous()
            self.packed["conv.bias"] = torch.zeros(len(weight)) if bias is None else bias.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.dim, "Block")
        self.refuse_gradients(x)
        with torch.no_grad():
            if self.is_whole and self.is_packed(x):
                return self._whole(x)
            y = self._branch(x, "norm1", "ss2d.in_proj")
            if self.gate_act is None:
                x = self._branch(self._scan(self._convolve(y)), "ss2d.out_norm", "ss2d.out_proj", residual=x)
            else:
                y, gate = y.chunk(2, dim=-1)
                y = self._scan(self._convolve(y))
                weight, bias = self.affine("ss2d.out_norm")
                y = F.layer_norm(y, y.shape[-1:], weight, bias, self.eps["ss2d.out_norm"])
                x = x + self._linear(y * _FUNCTIONS[self.gate_act](gate), "ss2d.out_proj")
            return self._branch(x, "norm2", "mlp.fc1", "mlp.fc2", residual=x) if self.has_mlp else x

    def _whole(self, x: Tensor) -> Tensor:
        names = ["ss2d.in_proj", "ss2d.x_proj", "ss2d.out_proj", *["mlp.fc1", "mlp.fc2"] * self.has_mlp]
        hidden = len(self.tensors["mlp.fc1.weight"]) if self.has_mlp else 0
        of_scan = [self.tensors["ss2d.dt_proj_weight"], self.A, self.tensors["ss2d.D"]]
        of_scan.append(self.tensors["ss2d.dt_proj_bias"])
        parameters = [self.packed["conv.weight"], self.packed["conv.bias"], *of_scan]
        layers, eps = [self.packed[name] for name in names], list(self.eps.values())
        return packed_block(x, layers, parameters, hidden, self.precision, self.pattern, eps)

    def _branch(self, x: Tensor, norm: str, *layers: str, residual: Tensor | None = None) -> Tensor:
        if self.is_packed(x):
            eps: float | None = self.eps[norm]
            for name in layers[:-1]:
                x, eps = self.linear(x, name, eps=eps, gelu=True), None
            return self.linear(x, layers[-1], eps=eps, residual=residual)
        weights, biases = zip(*map(self.affine, layers), strict=True)
        return pointwise_branch(x, *self.affine(norm), self.eps[norm], list(weights), list(biases), residual)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return self.linear(x, name) if self.is_packed(x) else pointwise(x, *self.affine(name))

    def _convolve(self, x: Tensor) -> Tensor:
        """Convolution, where there is one, and activation."""
        if not self.kernel_size:
            return _FUNCTIONS[self.act](x)
        weight, bias = self.affine("ss2d.conv")
        if self.act is nn.SiLU and self.kernel_size == 3:
            return depthwise_silu(x, weight, bias)
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=self.kernel_size // 2, groups=len(weight))
        return _FUNCTIONS[self.act](y.permute(0, 2, 3, 1))

    def _scan(self, x: Tensor) -> Tensor:
        if self.pattern != "cascade":
            return self._routes(x, self._project(x), self.pattern, 0, 4)
        for first, (along, flipped) in ((0, ("rows", 2)), (2, ("columns", 1))):  # as in `SS2D`
            x = F.layer_norm(x, x.shape[-1:])
            dbc = self._project(x)
            forward = self._routes(x, dbc, along, first, first + 1)
            x = forward + self._routes(x, dbc, f"{along}_backward", first + 1, first + 2).flip(flipped)
        return x

    def _project(self, x: Tensor) -> Tensor:
        return self._linear(x, "ss2d.x_proj").unflatten(-1, (self.routes, -1))

    def _routes(self, x: Tensor, dbc: Tensor, pattern: str, first: int, end: int) -> Tensor:
        """Scan with the parameter groups ``first … end - 1``."""
        names = ("ss2d.dt_proj_weight", "ss2d.D", "ss2d.dt_proj_bias")
        dt_weight, D, dt_bias = (self.tensors[name][first:end] for name in names)
        return ss2d_scan(x, dbc[..., first:end, :], dt_weight, self.A[first:end], D, dt_bias, pattern)

    def extra_repr(self) -> str:
        fused = ["norm1+in_proj", "conv+act", "scan", "out_norm+out_proj+residual"]
        fused[3:] = fused[3:] if self.gate_act is None else ["out_norm", "gate", "out_proj"]
        return f"{self.dim}: {', '.join(fused + ['norm2+mlp+residual'] * self.has_mlp)}"
