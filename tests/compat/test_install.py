"""Stand-ins in processes of their own: what is served, what is left alone, how a script sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vmamba
from support.forked import run_forked
from vmamba.compat.install import names

pytestmark = pytest.mark.slow


def python(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(vmamba.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


def run(code: str, cwd: Path | None = None) -> str:
    result = run_forked(code, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


IMPORTS = [
    "from mamba_ssm import Mamba, mamba_inner_fn, selective_scan_fn",
    "from mamba_ssm.modules.mamba_simple import Mamba",
    "from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref, mamba_inner_fn",
    "from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn_no_out_proj",
    "from mamba_ssm.ops.triton.layernorm import RMSNorm, layer_norm_fn, rms_norm_fn",
    "from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn",
    "from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined",
    "from mamba_ssm.ops.triton.selective_state_update import selective_state_update",
    "from mamba_ssm.ops.triton.layernorm_gated import RMSNorm",
    "from mamba_ssm.utils.generation import GenerationMixin",
    "from mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf",
    "from selective_scan import selective_scan_fn, selective_scan_ref",
    "from selective_scan_cuda import fwd, bwd",
    "from selective_scan_cuda_core import fwd, bwd",
    "from selective_scan_cuda_nrow import fwd, bwd",
    "from selective_scan_cuda_oflex import fwd, bwd",
    "from selective_scan_cuda_oflex_rh import fwd, bwd",
    "from selective_scan_cuda_ndstate import fwd, bwd",
    "from csm_triton import cross_scan_fn, cross_merge_fn, CrossScanTriton, CrossMergeTriton, CrossScanTriton1b1",
]


def test_all_names_come_after_install_and_are_named_once() -> None:
    missing = python("-c", "import mamba_ssm")
    assert "No module named 'mamba_ssm'" in missing.stderr
    result = run_forked("import vmamba.compat as c; c.install(); c.install()\n" + "\n".join(IMPORTS))
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [f"{', '.join(names())}: not installed; vmamba stands in"]


def test_importing_vmamba_serves_nothing() -> None:
    assert run("import vmamba, sys; print(any('standins' in p for p in sys.path), 'vmamba.compat' in sys.modules)") == (
        "False False"
    )


def test_a_real_package_comes_first(tmp_path: Path) -> None:
    (tmp_path / "mamba_ssm.py").write_text("real = True")
    (tmp_path / "selective_scan").mkdir()  # a folder of that name, as in the authors' repository, is no package
    code = "import vmamba.compat as c; print('mamba_ssm' in c.install(), end=' ')\n"
    code += "import mamba_ssm, selective_scan; print(mamba_ssm.real, hasattr(selective_scan, 'selective_scan_fn'))"
    assert run(code, cwd=tmp_path) == "False True True"


def test_a_package_that_appears_later_comes_first(tmp_path: Path) -> None:
    (tmp_path / "selective_scan_cuda.py").write_text("real = True")
    code = f"import vmamba.compat as c, sys; c.install(); sys.path.append({str(tmp_path)!r}); "
    code += f"sys.path.insert(0, {str(tmp_path)!r}); import selective_scan_cuda; print(selective_scan_cuda.real)"
    assert run(code) == "True"


@pytest.mark.parametrize("triton", [True, False], ids=["imports", "needs what is missing"])
def test_cross_scans_of_a_network_run_without_a_gpu(tmp_path: Path, triton: bool) -> None:
    """Functions that only a GPU can run are replaced, the network's own others stay; relative and top-level imports."""
    net = tmp_path / "net"
    net.mkdir()
    (net / "__init__.py").write_text("from .csm_triton import cross_scan_fn, CrossScanTriton\n")
    own = "" if triton else "import no_such_compiler\n"
    (net / "csm_triton.py").write_text(
        own + "def cross_scan_fn(x): raise RuntimeError('no GPU')\ndef extra(): return 7\n"
    )
    code = "import vmamba.compat as c, torch; c.install(); torch.cuda.is_available = lambda: False; import net\n"
    code += "print(*net.cross_scan_fn(torch.ones(1, 2, 3, 4)).shape, hasattr(net.csm_triton, 'extra'))"
    assert run(code, cwd=tmp_path) == f"1 4 2 12 {triton}"


def test_cross_scans_of_a_network_stay_where_there_is_a_gpu(tmp_path: Path) -> None:
    net = tmp_path / "net"
    net.mkdir()
    (net / "__init__.py").write_text("")
    (net / "csm_triton.py").write_text("cross_scan_fn = 7")
    code = "import vmamba.compat as c, torch; c.install(); torch.cuda.is_available = lambda: True\n"
    code += "from net.csm_triton import cross_scan_fn; print(cross_scan_fn)"
    assert run(code, cwd=tmp_path) == "7"


SCRIPT = """
import sys, pathlib
import helper
from mamba_ssm import Mamba
if __name__ == "__main__":
    print(sys.argv[1:], pathlib.Path(sys.argv[0]).name, helper.value, pathlib.Path(__file__).name, Mamba.__name__)
    sys.exit(3)
"""


def test_a_script_runs_unchanged(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("value = 5")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = python("-m", "vmamba.compat", tmp_path / "script.py", "--x", "1", cwd=elsewhere)
    assert result.stdout.strip() == "['--x', '1'] script.py 5 script.py Mamba"
    assert result.returncode == 3
    as_module = python("-m", "vmamba.compat", "-m", "script", "-m", "2", cwd=tmp_path)
    assert as_module.stdout.strip() == "['-m', '2'] script.py 5 script.py Mamba"
    assert as_module.returncode == 3


def test_wrong_commands_say_so_in_one_line(tmp_path: Path) -> None:
    program = "import runpy, sys; sys.argv = {}; runpy.run_module('vmamba.compat', run_name='__main__', alter_sys=True)"
    for arguments, message in ((["none.py"], "none.py: no such file"), (["-m"], "-m names no module")):
        result = run_forked(program.format(["vmamba.compat", *arguments]), cwd=tmp_path)
        assert result.returncode == 1
        assert result.stderr.startswith(message)
        assert result.stderr.count("\n") == 1
    assert run_forked(program.format(["vmamba.compat"])).stdout.startswith("usage: ")
