"""The documentation site: `make docs` builds it into build/docs, and any warning is an error."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

project = "VMamba"
author = "the VMamba developers"
copyright = author
pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
version = release = re.findall(r'^version = "(.+)"', pyproject, flags=re.MULTILINE)[0]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_design"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are shown as they were run; tests/docs runs them again
default_role = "py:obj"  # `name` in a docstring links to what it names, where there is such a thing

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as they are written: VMambaConfig(), not its thirty fields
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True

html_theme = "pydata_sphinx_theme"
html_title = f"VMamba {release}"
html_static_path = ["_static"]
html_css_files = ["vmamba.css"]
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("index", "start", "models", "how_it_works")}  # nothing lies below them
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "friendly",
    "pygments_dark_style": "github-dark",
}

# Pages are read in the repository, too, where they point to its files; here those are pages of their own.
REPOSITORY = [
    (r"(?:\.\./)+benchmarks/results/(\w+)\.md", r"/results/\1.md"),
    (r"(?:\.\./)+CONTRIBUTING\.md", "/contributing.md"),
    (r"(?:\.\./)+CHANGELOG\.md", "/changelog.md"),
    (r"(?:\.\./)+docs/start\.md", "/start.md"),
    (r"tests/README\.md", "/tests.md"),
]
BESIDE = [(r"(\w+\.(?:csv|png))", r"/../benchmarks/results/\1")]  # of a report


def link_pages(source: list[str], table: list[tuple[str, str]]) -> None:
    """Point links to files of the repository at the pages that include them."""
    for file, target in table:
        source[0] = re.sub(rf"\]\({file}", f"]({target}", source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", lambda app, page, source: link_pages(source, REPOSITORY))
    app.connect("include-read", lambda app, path, page, source: link_pages(source, REPOSITORY + BESIDE))
