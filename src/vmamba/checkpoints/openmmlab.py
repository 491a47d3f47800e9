"""The entry names of OpenMMLab's detectors and segmenters, as the authors released them, translated into ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from vmamba.checkpoints.authors import to_our_names

Kind = Literal["classification", "detection", "segmentation"]

_DETECTOR = (
    (r"^neck\.lateral_convs\.(\d+)\.conv\.", r"fpn.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d+)\.conv\.", r"fpn.layer_blocks.\1.0."),
    (r"^rpn_head\.rpn_conv\.", "rpn_head.conv.0.0."),
    (r"^rpn_head\.rpn_cls\.", "rpn_head.cls_logits."),
    (r"^rpn_head\.rpn_reg\.", "rpn_head.bbox_pred."),
    (r"^roi_head\.bbox_head\.shared_fcs\.0\.", "box_head.fc6."),
    (r"^roi_head\.bbox_head\.shared_fcs\.1\.", "box_head.fc7."),
    (r"^roi_head\.bbox_head\.fc_cls\.", "class_score."),
    (r"^roi_head\.bbox_head\.fc_reg\.", "box_offset."),
    (r"^roi_head\.mask_head\.convs\.(\d+)\.conv\.", r"mask_head.\1.0."),
    (r"^roi_head\.mask_head\.upsample\.", "mask_predictor.conv5_mask."),
    (r"^roi_head\.mask_head\.conv_logits\.", "mask_predictor.mask_fcn_logits."),
)
# transformers' UperNet has OpenMMLab's names but for two of them.
_SEGMENTER = ((r"\.bn\.", ".batch_norm."), (r"\.conv_seg\.", ".classifier."))


def kind_of(state_dict: Mapping[str, Tensor]) -> Kind:
    """What a checkpoint is for, whether it has OpenMMLab's entry names or ours."""
    if any(name.startswith(("roi_head.", "mask_head.")) for name in state_dict):
        return "detection"
    if any(name.startswith("decode_head.") for name in state_dict):
        return "segmentation"
    return "classification"


def detector_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a Mask R-CNN by the names in `MaskRCNN`, from OpenMMLab's or ours."""
    return _translate(state_dict, "backbone.", _DETECTOR)


def segmenter_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a UperNet by the names in `transformers.UperNetForSemanticSegmentation`, from OpenMMLab's or ours."""
    return _translate(state_dict, "backbone.vmamba.", _SEGMENTER)


def _translate(
    state_dict: Mapping[str, Tensor], backbone: str, renames: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    ours = {backbone + name: tensor for name, tensor in to_our_names(state_dict).items()}
    for author_name, tensor in state_dict.items():
        if not author_name.startswith("backbone."):
            name = author_name
            for pattern, replacement in renames:
                name = re.sub(pattern, replacement, name)
            ours[name] = tensor
    return ours
