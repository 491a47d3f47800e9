"""The README's commands and programs, run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vmamba.cli import main

pytestmark = pytest.mark.slow

README = (Path(__file__).parents[1] / "README.md").read_text()

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
