"""These tests need OpenMMLab's packages; the Makefile makes an environment for them."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("mmdet") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path.insert(0, str(Path(__file__).parent))
    import mmcv_operators

    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # the runner resumes from a file that the test has written

    mmcv_operators.install()
