"""Norms, in plain PyTorch."""
