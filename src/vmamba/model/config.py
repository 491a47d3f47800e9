"""`VMambaConfig`: everything that shapes a VMamba, validated once."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vmamba.errors import OptionError
from vmamba.layers.activation import ACTIVATIONS
from vmamba.layers.out_norm import OUT_NORMS
from vmamba.layers.scan import INITS
from vmamba.layers.ss2d import SCANS
from vmamba.model.author_options import fields_from_options, options_from_yaml

#: The allowed values of every option that is a choice.
CHOICES: dict[str, tuple[str, ...]] = {
    "ssm_act": tuple(ACTIVATIONS),
    "ssm_init": INITS,
    "scan": SCANS,
    "out_norm": tuple(OUT_NORMS),
    "mlp_act": tuple(ACTIVATIONS),
    "stem": ("overlapping", "patchify"),
    "downsample": ("conv3x3", "conv2x2", "patch_merging"),
}


#: Largest values, far above any model: a damaged or hostile configuration ends in one line, not in an allocation.
LIMITS = {
    "in_chans": 1 << 16,
    "num_classes": 1_000_000,
    "dims": 1 << 16,
    "depths": 512,
    "d_state": 4096,
    "ssm_ratio": 64,
    "dt_rank": 1 << 16,
    "ssm_conv": 255,
    "mlp_ratio": 64,
    "pos_embed_size": 1 << 16,
}
MAX_STAGES = 16


@dataclass(frozen=True)
class VMambaConfig:
    """Architecture of a VMamba (Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024).

    The defaults are `vmamba_tiny_s1l8`, the paper's VMamba-T.

    Attributes:
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 for none.
        dims: Channels of each stage.
        depths: Blocks of each stage.
        d_state: State size N.
        ssm_ratio: Inner channels D of SS2D as a multiple of the stage's.
        dt_rank: Rank R of the Δ projection; ``"auto"`` is ``ceil(dim / 16)``.
        ssm_act: Activation after the depthwise convolution, and of the gate.
        ssm_conv: Kernel size of the depthwise convolution, odd; 0 for none.
        ssm_conv_bias: Give that convolution a bias.
        ssm_init: Start of A, D and Δ: ``"mamba"`` (S4D-real), ``"rand"`` or ``"zero"`` (the paper's ablation).
        scan: Scan pattern, see `vmamba.ops.routes`; ``"cascade"`` scans rows, then columns of the result.
        gate: Multiply the output of the scan by a gate, as Mamba does.
        gate_act: Activate the gate.
        out_act: GELU after `out_norm`.
        out_norm: What follows the scan.
        mlp_ratio: Hidden channels of the MLP as a multiple of the stage's; 0 for no MLP.
        mlp_act: Activation of the MLP.
        stem: Two overlapping 3×3 convolutions of stride 2, or 4×4 patches.
        downsample: What halves the resolution between stages.
        patch_norm: Normalise in the stem.
        pos_embed_size: Side in pixels of the square image for which a position embedding is learnt (interpolated for
            other sizes); None for no embedding.
        drop_path_rate: Stochastic depth rate of the last block, growing linearly from 0 at the first.

    Raises:
        OptionError: For impossible values, in one line.

    Example:
        >>> from vmamba import VMamba
        >>> config = VMambaConfig(dims=(16, 32), depths=(1, 1), num_classes=5)
        >>> sum(p.numel() for p in VMamba(config).parameters()) < 100_000
        True
    """

    in_chans: int = 3
    num_classes: int = 1000
    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 8, 2)
    d_state: int = 1
    ssm_ratio: float = 1.0
    dt_rank: int | str = "auto"
    ssm_act: str = "silu"
    ssm_conv: int = 3
    ssm_conv_bias: bool = False
    ssm_init: str = "mamba"
    scan: str = "cross"
    gate: bool = False
    gate_act: bool = True
    out_act: bool = False
    out_norm: str = "layernorm"
    mlp_ratio: float = 4.0
    mlp_act: str = "gelu"
    stem: str = "overlapping"
    downsample: str = "conv3x3"
    patch_norm: bool = True
    pos_embed_size: int | None = None
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dims", "depths"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not value or not all(_is_int(v, 1) for v in value):
                self._refuse(name, "must be a sequence of positive integers")
            object.__setattr__(self, name, tuple(value))
        if len(self.dims) != len(self.depths):
            raise OptionError(f"VMambaConfig: dims has {len(self.dims)} stages, depths {len(self.depths)}")
        for name, low in (("in_chans", 1), ("num_classes", 0), ("d_state", 1), ("ssm_conv", 0)):
            if not _is_int(getattr(self, name), low):
                self._refuse(name, f"must be an integer ≥ {low}")
        if self.ssm_conv and self.ssm_conv % 2 == 0:
            self._refuse("ssm_conv", "must be odd, or 0 for none")
        if self.dt_rank != "auto" and not _is_int(self.dt_rank, 1):
            self._refuse("dt_rank", "must be a positive integer or 'auto'")
        if self.pos_embed_size is not None and not _is_int(self.pos_embed_size, 4):
            self._refuse("pos_embed_size", "must be pixels ≥ 4 or None")
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            values = value if name in ("dims", "depths") else (value,)
            if any(isinstance(v, (int, float)) and v > limit for v in values):
                self._refuse(name, f"must be at most {limit}")
        if not _is_number(self.ssm_ratio) or any(self.inner_dim(dim) < 1 for dim in self.dims):
            self._refuse("ssm_ratio", "must leave inner channels in every stage")
        if not _is_number(self.mlp_ratio) or self.mlp_ratio < 0:
            self._refuse("mlp_ratio", "must be ≥ 0")
        if not _is_number(self.drop_path_rate) or not 0 <= self.drop_path_rate < 1:
            self._refuse("drop_path_rate", "must be in [0, 1)")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                self._refuse(name, f"must be one of {', '.join(choices)}")
        if self.stem == "overlapping" and self.dims[0] < 2:
            raise OptionError("VMambaConfig: the overlapping stem needs dims[0] ≥ 2")
        for name in ("ssm_conv_bias", "gate", "gate_act", "out_act", "patch_norm"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "must be true or false")
        if len(self.dims) > MAX_STAGES:
            raise OptionError(f"VMambaConfig: at most {MAX_STAGES} stages, got {len(self.dims)}")

    def _refuse(self, name: str, rule: str) -> NoReturn:
        raise OptionError(f"VMambaConfig: {name} {rule}, got {reprlib.repr(getattr(self, name))}")

    def inner_dim(self, dim: int) -> int:
        """Inner channels D of SS2D in a stage of `dim` channels."""
        return int(self.ssm_ratio * dim)

    def rank(self, dim: int) -> int:
        """Rank R of the Δ projection in a stage of `dim` channels."""
        return math.ceil(dim / 16) if isinstance(self.dt_rank, str) else self.dt_rank

    def to_json(self) -> str:
        """All fields as a JSON object; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> VMambaConfig:
        """Read a JSON object of fields; what it leaves out takes its default.

        Raises:
            OptionError: If the text is not a JSON object, or for unknown names and impossible values.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"VMambaConfig: not JSON: {error}") from None
        if not isinstance(values, dict):
            raise OptionError(f"VMambaConfig: expected a JSON object of options, got {type(values).__name__}")
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VMambaConfig:
        """Build from a mapping of fields, naming the nearest field for an unknown one."""
        if not isinstance(values, Mapping):
            raise OptionError(f"VMambaConfig: expected an object of options, got {type(values).__name__}")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise OptionError(
                    f"VMambaConfig: unknown option {reprlib.repr(name)}"
                    + (f"; do you mean {near[0]!r}?" if near else "")
                )
        return cls(**values)

    def override(self, options: Mapping[str, Any]) -> VMambaConfig:
        """The same with other values of some fields.

        Raises:
            OptionError: For unknown names (the nearest is suggested) and impossible values.
        """
        return self.from_dict({**dataclasses.asdict(self), **options})

    @classmethod
    def from_author_options(cls, options: Mapping[str, Any]) -> VMambaConfig:
        """Build from the constructor options of the authors' ``VSSM`` (``forward_type``, ``ssm_d_state``, …).

        Raises:
            OptionError: For an option that this package does not have, such as Mamba-2 scans.
        """
        return cls(**fields_from_options(options))

    @classmethod
    def from_author_yaml(cls, path: str | Path) -> VMambaConfig:
        """Build from one of the authors' YAML model configurations (``classification/configs/vssm/*.yaml``).

        Raises:
            OSError: If the file cannot be read.
            OptionError: If it is not such a configuration.
        """
        options = options_from_yaml(Path(path))
        try:
            return cls.from_author_options(options)
        except OptionError as error:
            raise OptionError(f"{path}: {error}") from None


def _is_int(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30  # false for NaN
