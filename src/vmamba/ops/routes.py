"""Scan patterns as index maps.

A *route* is an order in which the tokens of an ``H × W`` grid are visited; a *pattern* is the list of routes that an
SS2D layer sums over. Kernels never permute features: they read and write image-order rows through these maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Route:
    """One way through the grid.

    Attributes:
        columns: Visit column after column instead of row after row.
        backward: Visit the tokens in the opposite order.
        per_line: Restart from a zero state at each line (row or column) instead of carrying it over.
    """

    columns: bool = False
    backward: bool = False
    per_line: bool = False

    def order(self, height: int, width: int, device: torch.device | str | None = None) -> Tensor:
        """Image-order index of the token visited at each time.

        Returns:
            int64 ``(H·W,)``, a permutation of ``0 … H·W-1``.
        """
        index = torch.arange(height * width, device=device).view(height, width)
        index = (index.T if self.columns else index).reshape(-1)
        return index.flip(0) if self.backward else index

    def line_length(self, height: int, width: int) -> int:
        """Number of tokens visited between two restarts of the state."""
        if not self.per_line:
            return height * width
        return height if self.columns else width


_ROWS, _ROWS_BACK = Route(), Route(backward=True)
_COLUMNS, _COLUMNS_BACK = Route(columns=True), Route(columns=True, backward=True)

#: The routes of each pattern, in the order of the parameter groups. The last four, of a single route, are the pieces of
#: the paper's cascade scan.
PATTERNS: dict[str, tuple[Route, ...]] = {
    "cross": (_ROWS, _COLUMNS, _ROWS_BACK, _COLUMNS_BACK),
    "unidirectional": (_ROWS,) * 4,
    "bidirectional": (_ROWS, _ROWS, _ROWS_BACK, _ROWS_BACK),
    "rows": (Route(per_line=True),),
    "rows_backward": (Route(backward=True, per_line=True),),
    "columns": (Route(columns=True, per_line=True),),
    "columns_backward": (Route(columns=True, backward=True, per_line=True),),
}


def routes(pattern: str) -> tuple[Route, ...]:
    """The routes of a pattern.

    Raises:
        ValueError: For a name that is not in :data:`PATTERNS`.
    """
    try:
        return PATTERNS[pattern]
    except KeyError:
        raise ValueError(f"unknown scan pattern {pattern!r}; choose one of {', '.join(PATTERNS)}") from None
