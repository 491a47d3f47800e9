"""The ``vmamba`` command: one module per subcommand, imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from vmamba.cli.arguments import add_common
from vmamba.cli.explanation import explain
from vmamba.progress import quiet, remarks_to_stderr
from vmamba.terminal import printable
from vmamba_command import COMMANDS, command_of, interrupted, top_parser

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

ERROR, BUG, CLOSED_PIPE = 2, 70, 141


def main(arguments: Sequence[str] | None = None, *, when_imported: Callable[[], None] = lambda: None) -> int:
    """Run the command line; returns the exit status, see ``vmamba --help``.

    Args:
        arguments: Default: those of the process.
        when_imported: Called when the command's modules are there, before it begins.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments).parse_args(arguments)
    try:
        when_imported()
        with quiet(options.quiet), remarks_to_stderr(getattr(options, "json", False)):
            status: int = options.run(options)
            sys.stdout.flush()  # here, where what goes wrong is explained
    except KeyboardInterrupt as interruption:
        return interrupted(interruption)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return CLOSED_PIPE
    except Exception as error:
        explanation = explain(error)
        if explanation is None or options.debug:
            traceback.print_exc()
        if explanation is None:
            print(
                "vmamba: this is a bug; please report it with the text above and what 'vmamba env --report' prints",
                file=sys.stderr,
            )
            return BUG
        print(f"vmamba: error: {printable(explanation)}", file=sys.stderr)
        return ERROR
    return status


def _parser(arguments: Sequence[str] | None) -> argparse.ArgumentParser:
    """The parser for a command line; of every command, for None."""
    parser, commands = top_parser()
    _add(commands, COMMANDS, __name__, arguments)
    return parser


def _add(commands: Commands, table: Mapping[str, str], package: str, arguments: Sequence[str] | None) -> None:
    """Add the commands of a table, modules of a package; the one that is named is imported, with its arguments."""
    chosen = None if arguments is None else command_of(arguments, table)
    for name, line in table.items():
        if arguments is not None and name != chosen:
            commands.add_parser(name, help=line)
            continue
        module = importlib.import_module(f"{package}.{name.replace('-', '_')}")
        if hasattr(module, "COMMANDS"):  # a package of further commands
            parser = commands.add_parser(name, help=line, description=module.DESCRIPTION)
            further = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
            rest = None if arguments is None else arguments[arguments.index(name) + 1 :]
            _add(further, module.COMMANDS, module.__name__, rest)
        else:
            module.add_to(commands)
            add_common(commands.choices[name])
