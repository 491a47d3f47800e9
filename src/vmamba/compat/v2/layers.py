"""Small layers of the second generation, for maps (B, C, H, W) and tokens (B, H, W, C)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmamba.layers.activation import activation
from vmamba.layers.call import call


class Linear2d(nn.Linear):
    """A linear map over the channels of (B, C, H, W); entries of 1×1 convolutions load too."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H, W)."""
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        name = f"{prefix}weight"
        if name in state_dict:
            state_dict[name] = state_dict[name].view(self.weight.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Permute(nn.Module):
    """``x.permute(*args)``."""

    def __init__(self, *args: int) -> None:
        super().__init__()
        self.args = args

    def forward(self, x: Tensor) -> Tensor:
        """Any shape of as many dimensions as there are arguments."""
        return x.permute(*self.args)


class Mlp(nn.Module):
    """Two linear maps with an activation between, over the last dimension or, `channels_first`, over (B, C, H, W)."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Any = nn.GELU,
        drop: float = 0.0,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        hidden, out = hidden_features or in_features, out_features or in_features
        linear = Linear2d if channels_first else nn.Linear
        self.fc1, self.act, self.fc2 = linear(in_features, hidden), act_of(act_layer)(), linear(hidden, out)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """The shape of x, with `out_features` channels."""
        x = self.fc1(x) if torch.jit.is_scripting() else call(self.fc1, x)
        x = self.drop(self.act(x))
        return self.drop(self.fc2(x) if torch.jit.is_scripting() else call(self.fc2, x))


class gMlp(nn.Module):
    """Gated: one half of the first linear map times the activation of the other, then the second."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Any = nn.GELU,
        drop: float = 0.0,
        channels_first: bool = False,
    ) -> None:
        super().__init__()
        self.channel_first = channels_first
        hidden, out = hidden_features or in_features, out_features or in_features
        linear = Linear2d if channels_first else nn.Linear
        self.fc1, self.act, self.fc2 = linear(in_features, 2 * hidden), act_of(act_layer)(), linear(hidden, out)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """The shape of x, with `out_features` channels."""
        x = self.fc1(x) if torch.jit.is_scripting() else call(self.fc1, x)
        x, gate = x.chunk(2, dim=1 if self.channel_first else -1)
        x = x * self.act(gate)
        return self.drop(self.fc2(x) if torch.jit.is_scripting() else call(self.fc2, x))


def act_of(act_layer: str | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The class of an activation, given itself or its name as in the authors' configurations."""
    if not isinstance(act_layer, str):
        return act_layer
    name = act_layer.lower()
    return lambda: activation(name)


def norm_of(norm_layer: str | Callable[..., nn.Module], channel_first: bool) -> Callable[..., nn.Module]:
    """The class of a normalisation for a layout.

    Raises:
        ValueError: For a name other than ``"ln"``, ``"ln2d"`` and ``"bn"``.
    """
    names: dict[str, Callable[..., nn.Module]] = {"ln": nn.LayerNorm, "ln2d": LayerNorm2d, "bn": nn.BatchNorm2d}
    if isinstance(norm_layer, str):
        if norm_layer.lower() not in names:
            raise ValueError(f"norm_layer must be one of {', '.join(names)}, got {norm_layer!r}")
        norm_layer = names[norm_layer.lower()]
    return LayerNorm2d if channel_first and norm_layer is nn.LayerNorm else norm_layer


def to_tokens(channel_first: bool) -> nn.Module:
    """From (B, C, H, W) to the layout of the blocks."""
    return nn.Identity() if channel_first else Permute(0, 2, 3, 1)


def to_map(channel_first: bool) -> nn.Module:
    """From the layout of the blocks to (B, C, H, W)."""
    return nn.Identity() if channel_first else Permute(0, 3, 1, 2)
