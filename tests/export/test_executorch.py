"""Programs of ExecuTorch against PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vmamba
from support.golden import relative_error
from vmamba.errors import OptionError
from vmamba.export import export
from vmamba.model.config import VMambaConfig

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")  # its own
def test_a_program_of_one_shape(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="executorch is not installed: pip install 'vmamba[executorch]'")
    from executorch.runtime import Runtime

    torch.manual_seed(0)
    model = vmamba.VMamba(VMambaConfig(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=7)).eval()
    exported = export(model, tmp_path / "model.pte", format="executorch", image_size=32)
    assert exported.error < 1e-5
    images = torch.randn(1, 3, 32, 32)
    (logits,) = Runtime.get().load_program(exported.path).load_method("forward").execute([images])
    with torch.no_grad():
        assert relative_error(logits, model(images)) < 1e-5


def test_free_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="files of executorch are for one shape of images; leave size out"):
        export(vmamba.create_model("vmamba_pico"), tmp_path / "model.pte", format="executorch", dynamic=["size"])
