"""The documentation site: builds without a warning, and lists every public name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    output = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "error::SyntaxWarning", "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    built = subprocess.run([*command, ROOT / "docs", output], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-4000:]
    return output


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    listed = {name for names in inventory.data.values() for name in names}
    shown = listed | {f"vmamba.frozen.{name}" for name in ("freeze",)}  # as vmamba.freeze
    missing = public_names() - shown
    assert not missing
    assert len(listed) > 150


@pytest.mark.slow
def test_every_page_is_found_from_the_first(site: Path) -> None:
    assert {"index.html", "start.html", "models.html", "how_it_works.html"} <= {p.name for p in site.glob("*.html")}
    for source in (ROOT / "docs").rglob("*.md"):
        page = site / source.relative_to(ROOT / "docs").with_suffix(".html")
        assert page.is_file(), page


def public_names() -> set[str]:
    """What ``__all__`` of the packages names, read without importing them."""
    names = set()
    for path in (ROOT / "src" / "vmamba").rglob("*.py"):
        if "standins" in path.parts:
            continue
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
                names |= {f"{module}.{name}" for name in ast.literal_eval(node.value)}
    return names
