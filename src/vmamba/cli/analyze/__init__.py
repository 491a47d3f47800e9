"""``vmamba analyze``: one module per analysis, each with its arguments; what they compute is in `vmamba.analysis`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmamba.cli.analyze import activation, attention, cost, erf, scaling, scans, steps, throughput

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

ANALYSES = (attention, activation, erf, cost, throughput, scaling, scans, steps)


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("analyze", help="look inside models, and compare them")
    analyses = parser.add_subparsers(required=True, metavar="ANALYSIS")
    for analysis in ANALYSES:
        analysis.add_to(analyses)
