"""Functions that are written in Triton there."""
