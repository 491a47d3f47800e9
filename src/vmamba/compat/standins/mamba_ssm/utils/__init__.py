"""Utilities for language models, which are not served."""
