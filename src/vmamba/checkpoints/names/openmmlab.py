"""Names of the heads in OpenMMLab's detectors and segmenters, as the authors released them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vmamba.checkpoints.stored import Entry

_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
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
        # Of UperNet all but two names are ours.
        (r"^(decode_head|auxiliary_head)\.(.*\.)?bn\.", r"\1.\2batch_norm."),
        (r"^(decode_head|auxiliary_head)\.conv_seg\.", r"\1.classifier."),
    )
)


def recognises(names: Collection[str]) -> bool:
    return any(pattern.match(name) for name in names for pattern, _ in _RENAMES)


def translate(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    renamed = {}
    for name, entry in entries.items():
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)  # noqa: PLW2901
        renamed[name] = entry
    return renamed
