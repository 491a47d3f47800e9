"""The released models and ours: a table of names and architectures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from vmamba.model.config import VMambaConfig

_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download/"


@dataclass(frozen=True)
class Variant:
    """A named architecture and, where the authors trained it, their weights and result.

    Attributes:
        config: The architecture; `drop_path_rate` is that of the authors' training and off unless asked for.
        checkpoint: Address of the authors' weights, relative to their releases.
        top1: Published ImageNet-1K top-1 accuracy at 224×224, per cent.
    """

    config: VMambaConfig
    checkpoint: str = ""
    top1: float | None = None

    @property
    def url(self) -> str:
        return _RELEASES + self.checkpoint if self.checkpoint else ""


_T, _B = (96, 192, 384, 768), (128, 256, 512, 1024)
# The first version of the paper: Mamba's block with a gate and 16 states, no MLP.
_VANILLA = VMambaConfig(
    d_state=16, ssm_ratio=2.0, ssm_conv_bias=True, gate=True, mlp_ratio=0.0, stem="patchify", downsample="patch_merging"
)
# "s2l5": ssm_ratio 2 and 5 blocks in the third stage.
_S2 = VMambaConfig(ssm_ratio=2.0)
_S1 = VMambaConfig()

VARIANTS: dict[str, Variant] = {
    name: Variant(dataclasses.replace(family, dims=dims, depths=depths), checkpoint, top1)
    for name, family, dims, depths, checkpoint, top1 in (
        ("vanilla_vmamba_tiny", _VANILLA, _T, (2, 2, 9, 2), "%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth", 82.2),
        ("vanilla_vmamba_small", _VANILLA, _T, (2, 2, 27, 2), "%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth", 83.5),
        ("vanilla_vmamba_base", _VANILLA, _B, (2, 2, 27, 2), "%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth", 83.7),
        ("vmamba_tiny_s2l5", _S2, _T, (2, 2, 5, 2), "%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth", 82.5),
        ("vmamba_small_s2l15", _S2, _T, (2, 2, 15, 2), "%23v2cls/vssm_small_0229_ckpt_epoch_222.pth", 83.6),
        ("vmamba_base_s2l15", _S2, _B, (2, 2, 15, 2), "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth", 83.9),
        ("vmamba_tiny_s1l8", _S1, _T, (2, 2, 8, 2), "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth", 82.6),
        ("vmamba_small_s1l20", _S1, _T, (2, 2, 20, 2), "%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth", 83.3),
        ("vmamba_base_s1l20", _S1, _B, (2, 2, 20, 2), "%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth", 83.8),
        # Ours, untrained, for small machines and tests.
        ("vmamba_nano", _S1, (48, 96, 192, 384), (2, 2, 6, 2), "", None),
        ("vmamba_pico", _S1, (24, 48, 96, 192), (1, 1, 2, 1), "", None),
    )
}
