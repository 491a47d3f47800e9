"""The model: configuration, layers, backbone, released variants and checkpoints."""
