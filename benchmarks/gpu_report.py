"""What `gpu.py` found, as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

#: The fraction, the speed-ups and the growth that were set out for; model → least images/s relative to it.
LEAST_OF_COPY, LEAST_SPEEDUP, MOST_GROWTH = 0.6, 4.0, 1.15
INFERENCE_TARGETS, TRAINING_TARGETS = {"swin": 1.36, "convnext": 1.0}, {"swin": 1.0}

#: Colour-blind-safe (Okabe and Ito); ours first.
COLOURS = {"vmamba": "#D55E00", "swin": "#0072B2", "convnext": "#009E73", "mambaout": "#CC79A7", "deit": "#999999"}
OTHER = "#56B4E9"


def report(
    rows: Sequence[Row],
    errors: Mapping[str, Mapping[str, float]],
    notes: Sequence[str],
    head: Mapping[str, str],
    name: str,
) -> str:
    """The report in Markdown: where it comes from, what was aimed at, all figures, what was left out."""
    parts = [f"# GPU, {head.get('date', '')}", "\n".join(f"- {key}: {value}" for key, value in head.items())]
    parts.append(f"Figures: [{name}.csv]({name}.csv), [{name}.png]({name}.png). Medians; quartiles are in the table.")
    if verdicts := targets(rows):
        parts.append("## What was aimed at")
        lines = [(what, figure, aim, "yes" if met else "**no**") for what, figure, aim, met in verdicts]
        parts.append(_table(("", "measured", "wanted", "reached"), lines))
    if errors:
        parts.append("## Relative error of the scans against float64")
        parts.append("Gradients were equal in two runs, bit for bit.")
        names = list(next(iter(errors.values())))
        lines = [(label, *(f"{found[n]:.0e}" for n in names)) for label, found in errors.items()]
        parts.append(_table(("scan", *names), lines))
    for section in dict.fromkeys(row["section"] for row in rows):
        chosen = [row for row in rows if row["section"] == section]
        columns = [key for key in chosen[0] if key != "section" and any(row[key] != "" for row in chosen)]
        parts += [f"## {section.capitalize()}", _table(columns, [[row[c] for c in columns] for row in chosen])]
    if notes:
        parts.append("## Left out\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def targets(rows: Sequence[Row]) -> list[tuple[str, str, str, bool]]:
    """Everything that was aimed at and has been measured: what, figure, aim, reached."""
    found = []
    scans = [row for row in rows if row["section"] == "scan"]
    for row in scans:
        if row["case"] != "fused":
            continue
        where = f"scan, {row['note']}, {row['what']}"
        if row["note"].endswith("stage 1"):
            figure = row["of_copy"]
            found.append(
                (f"{where}: of the copy's speed", f"{figure:.2f}", f"≥ {LEAST_OF_COPY}", figure >= LEAST_OF_COPY)
            )
        for other in scans:
            if other["case"] != "fused" and (other["note"], other["what"]) == (row["note"], row["what"]):
                ratio = other["ms"] / row["ms"]
                aim = (f"{ratio:.1f} ×", f"≥ {LEAST_SPEEDUP} ×", ratio >= LEAST_SPEEDUP)
                found.append((f"{where}: against {other['case']}", *aim))
    for section, wanted in (("inference", INFERENCE_TARGETS), ("training", TRAINING_TARGETS)):
        compiled = [row for row in rows if row["section"] == section and row["case"].endswith(" compiled")]
        for ours in (row for row in compiled if row["case"].startswith("vmamba")):
            for peer, least in wanted.items():
                for row in compiled:
                    if row["case"].startswith(peer) and row["what"] == ours["what"]:
                        ratio = ours["images_per_s"] / row["images_per_s"]
                        what = f"{section}, compiled, {_short(ours['case'])} against {_short(row['case'])}"
                        found.append((what, f"{ratio:.2f} ×", f"≥ {least} ×", ratio >= least))
    sides = {row["side"]: row["ms"] for row in rows if row["section"] == "growth" and row["case"].startswith("vmamba")}
    if {512, 2048} <= set(sides):
        ratio = sides[2048] / sides[512] / 16
        found.append(
            ("time per pixel, 2048² against 512²", f"{ratio:.2f} ×", f"≤ {MOST_GROWTH} ×", ratio <= MOST_GROWTH)
        )
    return found


def _table(columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rules = ["---"] * len(columns)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (columns, rules, *lines))


def _short(case: str) -> str:
    return case.removesuffix(" compiled").split("_patch")[0]


def _colour(case: str) -> str:
    return next((colour for name, colour in COLOURS.items() if case.startswith(name)), OTHER)


def draw(rows: Sequence[Row], path: Path) -> None:
    """The scan's share of the copy's speed, images/s of the models, and growth with resolution; whichever there are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    scans = [row for row in rows if row["section"] == "scan" and row["case"] == "fused"]
    groups = [
        (mode, [row for row in rows if row["section"] == mode and row["case"].endswith(" compiled")])
        for mode in ("inference", "training")
    ]
    groups = [(mode, chosen) for mode, chosen in groups if chosen]
    sizes = [row for row in rows if row["section"] == "growth"]
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
        axis.barh(labels, [100 * row["of_copy"] for row in scans], color=colours)
        axis.axvline(100 * LEAST_OF_COPY, color="black", linestyle="--", linewidth=1)
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize=7)
        axis.set(title="the scan: forward (f), and backward (b)", xlabel="% of the copy's speed, least bytes")
    for mode, chosen in groups:
        axis = next(free)
        labels = [f"{_short(row['case'])}" for row in chosen]
        axis.barh(labels, [row["images_per_s"] for row in chosen], color=[_colour(row["case"]) for row in chosen])
        axis.invert_yaxis()
        axis.set(title=f"{mode}, compiled, batch {chosen[0]['batch']}", xlabel="images/s")
    for quantity, known in grown.items():
        if not known:
            continue
        axis, factor = next(free), 1e6 if quantity == "ms" else 2**20
        for name in dict.fromkeys(row["case"] for row in known):
            chosen = [row for row in known if row["case"] == name]
            values = [factor * row[quantity] / row["side"] ** 2 for row in chosen]
            axis.plot([row["side"] for row in chosen], values, "o-", color=_colour(name), label=_short(name))
        sides = sorted({row["side"] for row in known})
        axis.set_xscale("log", base=2)
        axis.set_xticks(sides, list(map(str, sides)), rotation=60)
        axis.set_ylim(bottom=0)
        axis.set(title=quantities[quantity], xlabel="side of the image, batch 1")
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
