from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmamba.analysis.draw_orders import draw, ready_made


def test_a_panel_for_every_order(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    panels = ready_made(4)
    for _, height, width, routes in panels:
        tokens = routes[routes >= 0]
        assert set(tokens.tolist()) == set(range(height * width))
    files = draw(panels[:5], tmp_path / "orders", per_line=3)
    assert [file.name for file in files] == ["orders.png", "orders.svg"]
    assert all(title in files[1].read_text() for title, *_ in panels[:5])


def test_the_page_runs() -> None:
    """The code of docs/orders.md, as it stands."""
    page = (Path(__file__).parents[2] / "docs" / "orders.md").read_text()
    namespace: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], namespace)
    assert namespace["y"].shape == (2, 14, 14, 32)
    assert namespace["by_route"].shape == (2, 2, 14, 14, 32)
