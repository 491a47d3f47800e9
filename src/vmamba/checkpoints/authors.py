"""The entry names of the authors' checkpoints, translated into ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

# The authors' names → ours, applied in turn. Their downsampling ends a stage, ours starts the next.
_RENAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    # Their first release.
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
    # The present one.
    (r"^patch_embed\.0\.", "stem.conv1."),
    (r"^patch_embed\.2\.", "stem.norm1."),
    (r"^patch_embed\.5\.", "stem.conv2."),
    (r"^patch_embed\.7\.", "stem.norm2."),
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"\.downsample\.1\.", ".downsample.conv."),
    (r"\.downsample\.3\.", ".downsample.norm."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"^(stages\.\d+\.blocks\.\d+)\.norm\.", r"\1.norm1."),
    (r"\.op\.conv2d\.", ".ss2d.conv."),
    (r"\.op\.out_norm\.1\.", ".ss2d.out_norm."),
    (r"\.op\.out_norm\.2\.", ".ss2d.out_norm.1."),
    (r"\.op\.x_proj_weight$", ".ss2d.x_proj.weight"),
    (r"\.op\.dt_projs_", ".ss2d.dt_proj_"),
    (r"\.op\.A_logs$", ".ss2d.A_log"),
    (r"\.op\.Ds$", ".ss2d.D"),
    (r"\.op\.", ".ss2d."),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.head\.", "head.fc."),
    (r"^outnorm(\d+)\.", r"stage_norms.\1."),
)
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
_ROUTES = 4


def is_dense(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of a detector or segmenter around a backbone."""
    return any(name.startswith(("backbone.", "outnorm", "stage_norms.")) for name in state_dict)


def to_our_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by our names and in our shapes, from the authors' names (any release) or ours.

    Of a detector or segmenter only the backbone is taken.
    """
    state_dict = {_WRAPPERS.sub("", name): tensor for name, tensor in state_dict.items()}
    for prefix in ("backbone.vmamba.", "backbone."):  # the first inside transformers
        if any(name.startswith(prefix) for name in state_dict):
            state_dict = {name[len(prefix) :]: t for name, t in state_dict.items() if name.startswith(prefix)}
            break
    if not any(name.startswith(("patch_embed.", "layers.")) for name in state_dict):
        return dict(state_dict)
    ours = {}
    for author_name, tensor in state_dict.items():
        name = author_name
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        ours[name] = _our_shape(name, tensor)
    return ours


def _our_shape(name: str, tensor: Tensor) -> Tensor:
    if name.endswith((".ss2d.A_log", ".ss2d.D")) and tensor.shape[0] % _ROUTES == 0:
        return tensor.unflatten(0, (_ROUTES, -1))  # (K·D, …) → (K, D, …)
    if name.endswith(".ss2d.x_proj.weight") and tensor.ndim == 3:
        return tensor.flatten(0, 1)  # (K, R+2N, D) → (K(R+2N), D)
    if re.search(r"\.(in_proj|out_proj|fc1|fc2|reduction)\.weight$", name) and tensor.ndim == 4:
        return tensor.flatten(1)  # 1×1 convolutions of an early release
    return tensor
