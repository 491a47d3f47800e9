"""``vmamba completion``: completion of commands, options and files in a shell."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vmamba import cli
from vmamba.errors import MissingPackageError

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

SHELLS = ("bash", "zsh", "tcsh")

EXAMPLES = """examples:
  vmamba completion bash > ~/.local/share/bash-completion/completions/vmamba
  vmamba completion zsh > ~/.zfunc/_vmamba"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "completion", help="print a script that completes commands in a shell", epilog=EXAMPLES
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise MissingPackageError("shtab", "completion") from None
    parser = cli._parser(None)
    _complete_files(parser, {"FILE": shtab.FILE, "IMAGE": shtab.FILE, "FOLDER": shtab.DIRECTORY})
    print(shtab.complete(parser, options.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, kinds: dict[str, Any]) -> None:
    """Tell which arguments are files and folders, by the words that stand for them in the help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, kinds)
        elif isinstance(action.metavar, str) and action.metavar in kinds:
            action.complete = kinds[action.metavar]  # type: ignore[attr-defined]
