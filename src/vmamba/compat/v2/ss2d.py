"""SS2D and its block, second generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmamba.compat.ss2d import AuthorSS2D, depthwise
from vmamba.compat.v2.layers import Linear2d, Mlp, Permute, act_of, gMlp, norm_of
from vmamba.layers.call import call
from vmamba.layers.out_norm import SpatialSoftmax
from vmamba.model.author_options import INITS, forward_type_fields


class SS2D(AuthorSS2D):
    """in_proj → (split off gate) → depthwise conv → activation → scan → out_norm → (× act(gate)) → out_proj.

    Args:
        d_model: Channels.
        d_state: State size N.
        ssm_ratio: Inner channels as a multiple of `d_model`.
        dt_rank: Rank of Δ; ``"auto"`` is ``ceil(d_model / 16)``.
        act_layer: Activation after the convolution and of the gate, its class or its name.
        d_conv: Kernel size of the convolution; below 2 for none.
        conv_bias: Give it a bias.
        dropout: Of the result.
        bias: Give the projections biases.
        dt_min: Smallest initial step; like the next four for ``initialize="v0"``.
        dt_max: Largest initial step.
        dt_init: Initial Δ projection: ``"random"`` or ``"constant"``.
        dt_scale: Its scale.
        dt_init_floor: Lower limit of the initial step.
        initialize: ``"v0"`` (Mamba's), ``"v1"`` (random) or ``"v2"`` (zero).
        forward_type: Scan and tags, see `vmamba.model.author_options`; ``"v0"`` is the first generation's block, which
            fixes activation, convolution and layout.
        channel_first: Maps (B, d_model, H, W) instead of tokens (B, H, W, d_model).
        **kwargs: Ignored, as the authors' class does.

    Raises:
        OptionError: For an unknown `forward_type`.
        ValueError: When called, for another layout.
    """

    def __init__(
        self,
        d_model: int = 96,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dt_rank: int | str = "auto",
        act_layer: str | Callable[[], nn.Module] = nn.SiLU,
        d_conv: int = 3,
        conv_bias: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        initialize: str = "v0",
        forward_type: str = "v2",
        channel_first: bool = False,
        **kwargs: Any,
    ) -> None:
        fields = forward_type_fields(forward_type)
        first_generation = forward_type in ("v0", "v0seq")
        if first_generation:
            act_layer, d_conv, conv_bias, bias, channel_first, initialize = nn.SiLU, 3, True, False, False, "v0"
        inner = int(ssm_ratio * d_model)
        super().__init__(d_model, inner, d_state, dt_rank, layers=not first_generation)
        self.channel_first, self.pattern = channel_first, fields["scan"]
        self.disable_z, self.disable_z_act = not fields["gate"], not fields["gate_act"]
        linear = Linear2d if channel_first else nn.Linear
        self.in_proj = linear(d_model, inner if self.disable_z else 2 * inner, bias=bias)
        self.act = act_of(act_layer)()
        self.conv2d = depthwise(inner, d_conv, conv_bias) if d_conv > 1 else nn.Identity()
        self.out_norm = _out_norm(fields["out_norm"], inner)
        self.out_act = nn.GELU() if fields["out_act"] else nn.Identity()
        self.out_proj = linear(inner, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.init_scan(INITS[initialize], dt_min, dt_max, dt_init, dt_scale, dt_init_floor)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, d_model), or (B, d_model, H, W) with `channel_first`, to the same shape."""
        channels = 1 if self.channel_first else 3
        if x.ndim != 4 or x.shape[channels] != self.d_model:
            layout = f"(B, {self.d_model}, H, W)" if self.channel_first else f"(B, H, W, {self.d_model})"
            raise ValueError(f"SS2D: expected {layout}, got {tuple(x.shape)}")
        x = call(self.in_proj, x)
        gate = None
        if not self.disable_z:
            x, gate = x.chunk(2, dim=channels)
        y = self.out_act(self.out_norm(self.mix(x.permute(0, 2, 3, 1) if self.channel_first else x, self.pattern)))
        y = y.permute(0, 3, 1, 2) if self.channel_first else y
        if gate is not None:
            y = y * (gate if self.disable_z_act else self.act(gate))
        return self.dropout(call(self.out_proj, y))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Entries by the names of the first generation load too."""
        if hasattr(self, "x_proj"):
            for name in ("x_proj", "dt_projs"):
                if f"{prefix}{name}_weight" in state_dict:
                    state_dict[f"{prefix}{name}.weight"] = state_dict.pop(f"{prefix}{name}_weight").flatten(0, 1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _out_norm(kind: str, inner: int) -> nn.Module:
    """Normalisation after the scan, on tokens (B, H, W, D); entries are numbered as the authors'."""
    if kind == "layernorm":
        return nn.LayerNorm(inner)
    if kind == "dwconv3x3":
        return nn.Sequential(Permute(0, 3, 1, 2), depthwise(inner, 3, False), Permute(0, 2, 3, 1))
    if kind == "layernorm_dwconv3x3":
        convolution = depthwise(inner, 3, False)
        return nn.Sequential(nn.LayerNorm(inner), Permute(0, 3, 1, 2), convolution, Permute(0, 2, 3, 1))
    return {"none": nn.Identity, "softmax": SpatialSoftmax, "sigmoid": nn.Sigmoid}[kind]()


class VSSBlock(nn.Module):
    """``x + drop_path(SS2D(norm(x)))``, then ``x + drop_path(MLP(norm2(x)))`` where `mlp_ratio` is above 0.

    The arguments from `ssm_d_state` to `forward_type` are those of `SS2D`, those from `mlp_ratio` to `gmlp` of the MLP.

    Args:
        hidden_dim: Channels.
        drop_path: Stochastic depth.
        norm_layer: Class of the norms, or its name; LayerNorm is over the channels of either layout.
        channel_first: Maps (B, C, H, W) instead of tokens (B, H, W, C).
        use_checkpoint: Recompute the block in the backward pass.
        post_norm: Normalise after SS2D and MLP instead of before.
        _SS2D: Class of the scan.
        **kwargs: Ignored, as the authors' class does.
    """

    def __init__(
        self,
        hidden_dim: int = 0,
        drop_path: float = 0,
        norm_layer: str | Callable[..., nn.Module] = nn.LayerNorm,
        channel_first: bool = False,
        ssm_d_state: int = 16,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | str = "auto",
        ssm_act_layer: str | Callable[[], nn.Module] = nn.SiLU,
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0,
        ssm_init: str = "v0",
        forward_type: str = "v2",
        mlp_ratio: float = 4.0,
        mlp_act_layer: str | Callable[[], nn.Module] = nn.GELU,
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        use_checkpoint: bool = False,
        post_norm: bool = False,
        _SS2D: Callable[..., nn.Module] = SS2D,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.ssm_branch, self.mlp_branch = ssm_ratio > 0, mlp_ratio > 0
        self.use_checkpoint, self.post_norm = use_checkpoint, post_norm
        norm = norm_of(norm_layer, channel_first)
        if self.ssm_branch:
            self.norm = norm(hidden_dim)
            self.op = _SS2D(
                d_model=hidden_dim,
                d_state=ssm_d_state,
                ssm_ratio=ssm_ratio,
                dt_rank=ssm_dt_rank,
                act_layer=ssm_act_layer,
                d_conv=ssm_conv,
                conv_bias=ssm_conv_bias,
                dropout=ssm_drop_rate,
                initialize=ssm_init,
                forward_type=forward_type,
                channel_first=channel_first,
            )
        self.drop_path = DropPath(drop_path)
        if self.mlp_branch:
            self.norm2 = norm(hidden_dim)
            mlp = gMlp if gmlp else Mlp
            hidden = int(hidden_dim * mlp_ratio)
            self.mlp = mlp(
                hidden_dim, hidden, act_layer=mlp_act_layer, drop=mlp_drop_rate, channels_first=channel_first
            )

    def forward(self, input: Tensor) -> Tensor:
        """(B, H, W, hidden_dim), or (B, hidden_dim, H, W) with `channel_first`, to the same shape."""
        return checkpoint(self._forward, input, use_reentrant=False) if self.use_checkpoint else self._forward(input)

    def _forward(self, x: Tensor) -> Tensor:
        if self.ssm_branch:
            x = x + self.drop_path(self.norm(self.op(x)) if self.post_norm else self.op(self.norm(x)))
        if self.mlp_branch:
            x = x + self.drop_path(self.norm2(self.mlp(x)) if self.post_norm else self.mlp(self.norm2(x)))
        return x
