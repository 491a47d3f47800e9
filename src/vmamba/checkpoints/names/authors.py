"""Names in the authors' checkpoints of both releases, for a classifier or a ``backbone.`` within a dense model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from vmamba.checkpoints.stored import Entry

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
_THEIRS = re.compile(r"(backbone\.)?(patch_embed|layers)\.")
_LINEAR = re.compile(r"\.(in_proj|out_proj|fc1|fc2|reduction)\.weight$")
_ROUTES = 4


def recognises(names: Collection[str]) -> bool:
    return any(_THEIRS.match(name) for name in names)


def translate(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Names and shapes; the entries of a dense model's heads stay as they are."""
    prefix = "backbone." if any(name.startswith("backbone.") for name in entries) else ""
    ours = {}
    for theirs, entry in entries.items():
        if theirs.startswith(prefix):
            name = theirs.removeprefix(prefix)
            for pattern, replacement in _RENAMES:
                name = re.sub(pattern, replacement, name)
            ours[prefix + name] = entry.reshape(_our_shape(name, tuple(entry.shape)))
        else:
            ours[theirs] = entry
    return ours


def _our_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if name.endswith((".ss2d.A_log", ".ss2d.D")) and shape and shape[0] % _ROUTES == 0:
        return (_ROUTES, shape[0] // _ROUTES, *shape[1:])  # (K·D, …) → (K, D, …)
    if name.endswith(".ss2d.x_proj.weight") and len(shape) == 3:
        return (shape[0] * shape[1], shape[2])  # (K, R+2N, D) → (K(R+2N), D)
    if _LINEAR.search(name) and shape[2:] == (1, 1):
        return shape[:2]  # 1×1 convolutions of an early release
    return shape
