"""The rows as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_bench.goals import OF_FLOOR, verdicts
from gpu_bench.plan import Plan

Row = Mapping[str, Any]
#: Colour-blind-safe (Okabe and Ito); ours first.
COLOURS = {"vmamba": "#D55E00", "swin": "#0072B2", "convnext": "#009E73", "mambaout": "#CC79A7", "deit": "#999999"}
OTHER = "#56B4E9"


def report(rows: Sequence[Row], outcomes: Mapping[str, str], plan: Plan, head: Mapping[str, str], name: str) -> str:
    """The report in Markdown: where it comes from, what was aimed at, all figures, what has none and why."""
    parts = [f"# GPU, {head.get('date', '')}", "\n".join(f"- {key}: {value}" for key, value in head.items())]
    parts.append(f"Figures: [{name}.csv]({name}.csv), [{name}.png]({name}.png). Medians; quartiles are in the table.")
    lines = [(v.goal, v.measured, v.wanted, v.result) for v in verdicts(rows, outcomes, plan)]
    parts += ["## What was aimed at", _table(("", "measured", "wanted", "result"), lines)]
    for step in dict.fromkeys(row["step"] for row in rows):
        chosen = [row for row in rows if row["step"] == step]
        columns = [key for key in chosen[0] if key != "step" and any(row[key] != "" for row in chosen)]
        parts += [f"## {step[0].upper()}{step[1:]}", _table(columns, [[row[c] for c in columns] for row in chosen])]
    if broken := {step: outcome for step, outcome in outcomes.items() if outcome != "done"}:
        parts.append("## Steps that broke off\n\n" + "\n".join(f"- {step}: {why}" for step, why in broken.items()))
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rules = ["---"] * len(columns)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (columns, rules, *lines))


def _short(case: str) -> str:
    return case.split("_patch", maxsplit=1)[0]


def _colour(case: str) -> str:
    return next((colour for name, colour in COLOURS.items() if case.startswith(name)), OTHER)


def draw(rows: Sequence[Row], path: Path) -> None:
    """The scan against its floor, images/s of the models, and growth with the size of the image; what there is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if row["status"] == "ok"]
    scans = [row for row in rows if row["step"].startswith("scan") and row["of_floor"] != ""]
    groups = [
        (step, [row for row in rows if row["step"] == step and row["what"] == "compiled"])
        for step in dict.fromkeys(row["step"] for row in rows if row["what"] == "compiled")
    ]
    sizes = [row for row in rows if row["step"] == "growth"]
    quantities = {"ms": "ns per pixel", "peak_mib": "peak memory, bytes per pixel"}
    grown = {quantity: [row for row in sizes if row[quantity] != ""] for quantity in quantities}
    count = bool(scans) + len(groups) + sum(map(bool, grown.values()))
    if not count:
        return
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 4.4), layout="constrained", squeeze=False)
    free = iter(axes[0])
    if scans:
        axis = next(free)
        labels = [f"{row['note']}, {'f' if row['what'] == 'forward' else 'f+b'}" for row in scans]
        colours = [COLOURS["vmamba"] if row["what"] == "forward" else COLOURS["swin"] for row in scans]
        axis.barh(labels, [100 * row["of_floor"] for row in scans], color=colours)
        axis.axvline(100 * OF_FLOOR, color="black", linestyle="--", linewidth=1)
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize=7)
        axis.set(title="the scan: forward (f), and backward (b)", xlabel="% of the floor")
    for step, chosen in groups:
        axis = next(free)
        labels = [_short(row["case"]) for row in chosen]
        axis.barh(labels, [row["images_per_s"] for row in chosen], color=[_colour(row["case"]) for row in chosen])
        axis.invert_yaxis()
        axis.set(title=f"{step}, compiled, batch {chosen[0]['batch']}", xlabel="images/s")
    for quantity, known in grown.items():
        if not known:
            continue
        axis, factor = next(free), 1e6 if quantity == "ms" else 2**20
        for name in dict.fromkeys(row["case"] for row in known):
            chosen = [row for row in known if row["case"] == name]
            values = [factor * row[quantity] / row["size"] ** 2 for row in chosen]
            axis.plot([row["size"] for row in chosen], values, "o-", color=_colour(name), label=_short(name))
        ticks = sorted({row["size"] for row in known})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, list(map(str, ticks)), rotation=60)
        axis.set_ylim(bottom=0)
        axis.set(title=quantities[quantity], xlabel="side of the image, batch 1")
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
