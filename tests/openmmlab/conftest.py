"""These tests need OpenMMLab's packages; the Makefile makes an environment for them."""

from __future__ import annotations

import os
from importlib.util import find_spec

if find_spec("mmdet") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from support import mmcv_operators

    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # the runner resumes from a file that the test has written

    mmcv_operators.install()
