"""Data that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmamba.data.shapes import write_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of shapes in coco/ and ade20k/. Not to be changed."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=30, val=6, image_size=64)
    return root
