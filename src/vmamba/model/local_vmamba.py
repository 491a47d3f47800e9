"""`LocalVMamba`: VMamba that scans through windows, in directions found for each layer by a search.

Source: Huang et al., "LocalMamba: Visual State Space Model with Windowed Selective Scan", 2024 (arXiv 2403.09338).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vmamba.errors import OptionError
from vmamba.layers.routed_scan import DirectedScan2d, directed_order
from vmamba.model.backbone import Stage, VMamba, build_stages
from vmamba.model.config import VMambaConfig

#: Directions of every block, from the first: what the paper's search chose, as in the released configurations.
_TINY = """
h h_flip w7 w7_flip|h_flip v_flip w2 w2_flip|h_flip v_flip w2_flip w7|h_flip v v_flip w2|h h_flip v_flip w2_flip
h_flip v_flip w2 w2_flip|h w2_flip w7 w7_flip|h h_flip v v_flip|h v_flip w7 w7_flip|h_flip v w2 w7_flip
v v_flip w2 w7_flip|h h_flip v_flip w2_flip|v_flip w2_flip w7 w7_flip|h_flip v_flip w2_flip w7_flip
h_flip v w7 w7_flip
"""
_SMALL = """
h v v_flip w7_flip|h h_flip v w7|h_flip v v_flip w7|h_flip v w2_flip w7|h_flip v w2_flip w7|h_flip v_flip w2 w7_flip
h_flip v v_flip w7|h v v_flip w7|h v v_flip w7|h v v_flip w7_flip|h h_flip v v_flip|h v v_flip w2|v v_flip w2_flip w7
h h_flip v w2|h_flip v v_flip w7_flip|h h_flip v v_flip|h v v_flip w7_flip|h v v_flip w7_flip|h h_flip v_flip w7
h_flip v_flip w2_flip w7|h_flip v v_flip w7_flip|v v_flip w7 w7_flip|h v v_flip w7_flip|h_flip v v_flip w2
h v v_flip w2_flip|h h_flip v w7|h h_flip w7 w7_flip|h v_flip w2 w2_flip|h v_flip w2 w7|h v v_flip w7_flip
h_flip v w2_flip w7|h_flip v_flip w7 w7_flip|h v w7 w7_flip
"""


def _parsed(table: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(block.split()) for block in table.strip().replace("\n", "|").split("|"))


@dataclass(frozen=True)
class LocalVMambaConfig(VMambaConfig):
    """Architecture of a LocalVMamba: that of the first VMamba, and the directions of its blocks.

    The defaults are `local_vmamba_tiny`. `scan` has no meaning here.

    Attributes:
        directions: Four for every block, see `vmamba.layers.routed_scan.DirectedScan2d`; a single block's serve all.

    Raises:
        OptionError: For impossible values.
    """

    depths: tuple[int, ...] = (2, 2, 9, 2)
    d_state: int = 16
    ssm_ratio: float = 2.0
    ssm_conv_bias: bool = True
    gate: bool = True
    mlp_ratio: float = 0.0
    stem: str = "patchify"
    downsample: str = "patch_merging"
    directions: tuple[tuple[str, ...], ...] = _parsed(_TINY)

    def __post_init__(self) -> None:
        super().__post_init__()
        blocks, directions = sum(self.depths), tuple(map(tuple, self.directions))
        if len(directions) == 1:
            directions *= blocks
        if len(directions) != blocks or any(len(four) != 4 for four in directions):
            raise OptionError(
                f"LocalVMambaConfig: directions must be four names for each of the {blocks} blocks, or for one that "
                f"serves all, got {len(directions)} entries"
            )
        for four in set(directions):
            try:
                directed_order(1, 1, four)
            except ValueError as error:
                raise OptionError(f"LocalVMambaConfig: directions: {error}") from None
        object.__setattr__(self, "directions", directions)


class LocalVMamba(VMamba):
    """LocalVMamba (Huang et al., "LocalMamba", 2024): the contract and the options of `VMamba`.

    Each of four routes follows rows, columns, or windows of 2×2 or 7×7 tokens, forward or backward; windows that the
    map does not fill are padded with zeros. The outputs of the routes are weighed by an attention over channels before
    they are summed. The paper also describes a spatial branch of that attention (SCAttn); the released models do
    without, and so do the paper's numbers of parameters. On maps that are not square the released code puts what
    columns bring in other places; here it stays with its tokens.
    """

    def build_stages(self, config: VMambaConfig, **factory: Any) -> list[Stage]:
        assert isinstance(config, LocalVMambaConfig)
        stages = build_stages(config, **factory)
        blocks = [(block, dim) for stage, dim in zip(stages, config.dims, strict=True) for block in stage.blocks]
        for (block, dim), directions in zip(blocks, config.directions, strict=True):
            block.ss2d.scan = DirectedScan2d(config.inner_dim(dim), directions, **factory)  # type: ignore[union-attr]
        return stages


TINY = LocalVMambaConfig()
SMALL = dataclasses.replace(TINY, depths=(2, 2, 27, 2), directions=_parsed(_SMALL))
