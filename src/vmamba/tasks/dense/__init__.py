"""Parts that detection and segmentation have in common."""
