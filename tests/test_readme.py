"""The README's commands and programs, run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vmamba.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")

# What needs the network, or files that only its reader has. `pip install` is what `make` does.
NEEDS_MORE = ("pip install", "--pretrained", "vssm1_tiny_0230s_ckpt_epoch_264.pth")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    run = [line for line in commands if not any(word in line for word in NEEDS_MORE)]
    assert len(run) >= 3
    for command in run:
        program, *arguments = shlex.split(command)
        assert program == "vmamba"
        assert main(arguments) == 0, command


def test_commands_that_need_more_are_well_formed(capsys: pytest.CaptureFixture[str]) -> None:
    """They get as far as the files or the network that they lack."""
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("vmamba")]
    lacking = [line for line in commands if any(word in line for word in NEEDS_MORE)]
    assert len(lacking) >= 3
    for command in lacking:
        assert main(shlex.split(command)[1:]) == 2, command
        assert re.search("no such file|matches nothing", capsys.readouterr().err), command


@pytest.mark.parametrize("program", blocks("python"), ids=lambda text: text.split("\n")[0])
def test_programs(program: str) -> None:
    exec(compile(program, "README.md", "exec"), {})


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line[3:].lower()).replace(" ", "-") for line in README.splitlines() if line[:3] == "## "
    }
    links = LINK.findall(README)
    assert len(links) > 20
    for link in links:
        assert link[1:] in headings if link[0] == "#" else (ROOT / link.partition("#")[0]).exists(), link


def test_readme_of_an_index_has_no_links_into_the_repository() -> None:
    """The rewriting of pyproject.toml, as the build applies it."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = README
    for rule in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert "![" not in text
    assert all(link.startswith("#") for link in LINK.findall(text))
    assert "](https://arxiv.org/abs/2401.10166)" in text
    assert "start in five minutes" in text
