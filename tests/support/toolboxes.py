"""Models of the toolboxes, from their own base configuration files, made small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmdet.datasets
import mmdet.evaluation
import mmdet.models
import mmseg.datasets
import mmseg.evaluation
import mmseg.models
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

CONFIGS = {
    "detection": Path(mmdet.__file__).parent / ".mim/configs/swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
    "segmentation": Path(mmseg.__file__).parent
    / ".mim/configs/swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
}
#: As the authors' configuration files have it, but for the numbers.
BACKBONE = """dict(
    type='MM_VSSM', out_indices=(0, 1, 2, 3), pretrained='', dims={dims}, depths={depths}, ssm_d_state=1,
    ssm_dt_rank='auto', ssm_ratio={ratio}, ssm_conv=3, ssm_conv_bias=False, forward_type='{forward}', mlp_ratio=4.0,
    downsample_version='v3', patchembed_version='v2', drop_path_rate={drop_path}, norm_layer='ln2d')"""
OPTIONS = {
    "dims": 8, "depths": [1, 1, 1, 1], "ssm_d_state": 1, "ssm_dt_rank": "auto", "ssm_ratio": 1.0, "ssm_conv": 3,
    "ssm_conv_bias": False, "forward_type": "v05_noz", "mlp_ratio": 4.0, "downsample_version": "v3",
    "patchembed_version": "v2", "norm_layer": "ln2d", "drop_path_rate": 0.0,
}  # fmt: skip


def config(kind: str, folder: Path, backbone: str | None = None) -> Config:
    """The base configuration with our backbone in place of Swin's, as a file in `folder`."""
    backbone = backbone or BACKBONE.format(dims=8, depths=(1, 1, 1, 1), ratio=1.0, forward="v05_noz", drop_path=0.0)
    path = folder / f"{kind}.py"
    path.write_text(
        f"_base_ = [{str(CONFIGS[kind])!r}]\n"
        "custom_imports = dict(imports=['vmamba.integrations.openmmlab'])\n"
        f"model = dict(backbone={backbone})\n"
    )
    return Config.fromfile(path)


def shrink(kind: str, settings: Config) -> Config:
    """Small heads on small maps, batch norm of one process."""
    model = settings.model
    if kind == "detection":
        model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
        model.rpn_head.update(in_channels=16, feat_channels=16)
        head = model.roi_head
        head.bbox_roi_extractor.out_channels = head.mask_roi_extractor.out_channels = 16
        head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=5)
        head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=5)
    else:
        norm = {"type": "BN", "requires_grad": True}
        model.decode_head.update(in_channels=[8, 16, 32, 64], channels=16, num_classes=5, norm_cfg=norm)
        model.auxiliary_head.update(in_channels=32, channels=8, num_classes=5, norm_cfg=norm)
    return settings


def build(kind: str, settings: Config) -> torch.nn.Module:
    """The model, by the toolbox's registry."""
    package: Any = mmdet if kind == "detection" else mmseg
    init_default_scope("mmdet" if kind == "detection" else "mmseg")
    return package.registry.MODELS.build(settings.model)
