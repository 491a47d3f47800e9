"""timm's own tests/test_models.py, run on our models.

The file is taken from timm's source distribution of the installed version, which ``make test`` fetches; it is not part
of this repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from support.marks import exhaustive

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SUITE = HERE.parents[1] / ".cache" / f"timm-{version('timm')}" / "tests" / "test_models.py"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("models", "count", "in_ci"),
    [
        ("vmamba_pico", 11, False),  # the test that is not for CI, TorchScript of a graph, too
        ("vanilla_vmamba_tiny or local_vmamba_tiny", 10 * 2, True),
        exhaustive("vmamba_nano or vmamba_tiny or efficient_vmamba_tiny", 10 * 4, True),
        # More blocks of the same, without the three tests that take longest.
        exhaustive("(vmamba_small or vmamba_base) and not _fx and not prune_intermediate_layers_contract", 7 * 6, True),
    ],
)
def test_timm_accepts_our_models(tmp_path: Path, models: str, count: int, in_ci: bool) -> None:
    assert SUITE.is_file(), f"{SUITE} is missing; 'make test' fetches it"
    environment = {name: value for name, value in os.environ.items() if name != "GITHUB_ACTIONS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    if in_ci:
        environment["GITHUB_ACTIONS"] = "true"  # leaves out the tests that download weights
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "plugin", SUITE, "-q", "-k", models, "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    passed = int(result.stdout.rsplit(" passed", 1)[0].split()[-1])
    assert passed >= count
