"""Pre-training on images without labels."""
