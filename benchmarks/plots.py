"""Plots of raw results: ``python -m benchmarks --from-json FILE --plots DIR`` draws them again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.composed.shims import PLAIN_IS, THROUGH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

_OURS, _PEER, _MARK = "#2a6f97", "#b8b8b8", "#d1495b"
_PEERS = ["#8f2d56", "#d1a13b", "#4f772d", "#7d8597", "#b56576", "#3d405b", "#b8b8b8"]
_PERCENTILES = {"median": "|", "p90": "o", "p99": "D", "max": "x"}

Raw = dict[str, Any]


def draw(results: Raw, directory: Path) -> list[Path]:
    """A picture for each benchmark that ran, as PNG and SVG; the paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "0"})
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for result in results["results"]:
        drawer: Callable[[Raw], Figure] | None = None
        if any(isinstance(fact, list) for fact in result["facts"].values()):
            drawer = _import
        elif result.get("curve"):
            drawer = _curve
        elif result.get("compared") == PLAIN_IS:
            drawer = _pairs
        elif result["subjects"]:
            crowds = {subject["tasks"] for subject in result["subjects"]}
            drawer = _scaling if len(crowds) > 2 else _compared
        if drawer is None:
            continue
        figure = drawer(result)
        figure.text(0.995, 0.005, _caption(results), ha="right", va="bottom", fontsize=6, color="#777777")
        for suffix in (".png", ".svg"):
            path = directory / f"{result['name']}{suffix}"
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(path, dpi=130, bbox_inches="tight", metadata=metadata)
            written.append(path)
        import matplotlib.pyplot as plt

        plt.close(figure)
    return written


def _caption(results: Raw) -> str:
    env = results["environment"]
    machine = f"{env['processors']} × {env['processor']}"
    return f"{env['at'][:10]}, {env['python']}, {machine}, size {results['settings']['size']}"


def _label(subject: Raw) -> str:
    tasks, processes = subject["tasks"], subject.get("processes", 1)
    many = f"{processes} × " if processes > 1 else ""
    return f"{subject['name']}, {many}{tasks} task{'s' if tasks > 1 else ''}"


def _compared(result: Raw) -> Figure:
    """Rates on the left, with every round as a dot; latencies on the right."""
    import matplotlib.pyplot as plt

    subjects = result["subjects"][::-1]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.2 + 0.26 * len(subjects)), sharey=True, width_ratios=(3, 2)
    )
    figure.suptitle(result["title"], x=0.01, ha="left", fontweight="bold")
    places = range(len(subjects))
    colors = [_OURS if subject["ours"] else _PEER for subject in subjects]
    left.barh(places, [subject["rate_per_s"] for subject in subjects], color=colors, height=0.7)
    for place, subject in zip(places, subjects, strict=True):
        rounds = subject["rounds_per_s"]
        left.plot(rounds, [place] * len(rounds), ".", color=_MARK, markersize=3, alpha=0.7)
        left.annotate(
            f" {subject['rate_per_s']:,.0f}", (max(rounds), place), va="center", fontsize=7, annotation_clip=False
        )
    left.set_yticks(places, [_label(subject) for subject in subjects])
    left.set_xlabel("operations a second (bar: median; dots: rounds)")
    left.ticklabel_format(axis="x", style="plain")
    _latencies(right, subjects)
    figure.tight_layout()
    return figure


def _scaling(result: Raw) -> Figure:
    """Rates and latencies against the number of tasks, a line each; several processes as lone marks."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    lines: dict[str, list[Raw]] = {}
    for subject in result["subjects"]:
        lines.setdefault(subject["name"], []).append(subject)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    figure.suptitle(result["title"], x=0.01, ha="left", fontweight="bold")
    peers = iter(_PEERS * len(lines))
    colors: dict[str, str] = {}
    for name, found in lines.items():
        ours = found[0]["ours"]
        case, _, side = name.rpartition(": ")
        if side not in colors:
            colors[side] = _OURS if ours else next(peers)
        other_case = case != next(iter(lines)).rpartition(": ")[0]
        style = {
            "color": colors[side],
            "linewidth": 2.2 if ours else 1.2,
            "marker": ".",
            "linestyle": "--" if other_case else "-",
        }
        alone = [subject for subject in found if subject.get("processes", 1) == 1]
        tasks = [subject["tasks"] for subject in alone]
        axes[0].plot(tasks, [subject["rate_per_s"] for subject in alone], label=name, **style)
        for place, percent in ((1, "median"), (2, "p99")):
            axes[place].plot(tasks, [subject["latency_us"].get(percent) for subject in alone], **style)
        for subject in found:
            if subject.get("processes", 1) > 1:
                everyone = subject["tasks"] * subject["processes"]
                axes[0].plot([everyone], [subject["rate_per_s"]], "D", color=style["color"], markersize=6)
    for axis, label in zip(
        axes, ("operations a second (◆: two processes)", "median latency, µs", "99th percentile, µs"), strict=True
    ):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("tasks")
        axis.set_ylabel(label)
        axis.set_xticks(sorted({subject["tasks"] for subject in result["subjects"]}))
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    figure.legend(loc="lower center", ncols=4, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.05 + 0.04 * (len(lines) // 4), 1, 1))
    return figure


def _pairs(result: Raw) -> Figure:
    """How many times as long something takes as without: the median of the rounds, and half of them in the bar."""
    import matplotlib.pyplot as plt

    rows = [
        (subject, [a / b for a, b in zip(plain["rounds_per_s"], subject["rounds_per_s"], strict=False)])
        for plain, subject in itertools.pairwise(result["subjects"])
        if plain["ours"] and not subject["ours"]
    ][::-1]
    figure, axes = plt.subplots(figsize=(7.5, 1.2 + 0.22 * len(rows)))
    figure.suptitle(result["title"], x=0.01, ha="left", fontweight="bold")
    for place, (_, ratios) in enumerate(rows):
        ordered = sorted(ratios)
        low, middle, high = (ordered[int((len(ordered) - 1) * part)] for part in (0.25, 0.5, 0.75))
        axes.plot([low, high], [place, place], color=_PEER, linewidth=5, solid_capstyle="butt")
        axes.plot([middle], [place], "|", color=_OURS, markersize=9, markeredgewidth=2)
        axes.annotate(f"  {middle:.2f}", (high, place), va="center", fontsize=7)
    axes.axvline(1, color="#777777", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [_label(subject).replace(f": {THROUGH}", "") for subject, _ in rows])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.set_xlabel("time of an operation, of one without (line: median of the rounds, bar: half of them)")
    axes.grid(alpha=0.25, axis="x")
    figure.tight_layout()
    return figure


def _curve(result: Raw) -> Figure:
    """What depends on what, a line each; at 1 it is as without."""
    import matplotlib.pyplot as plt

    curve = result["curve"]
    figure, axes = plt.subplots(figsize=(6.5, 3.8))
    figure.suptitle(result["title"], x=0.01, ha="left", fontweight="bold")
    axes.axhline(1, color="#777777", linewidth=0.8, linestyle=":")
    colors = [_OURS, *_PEERS]
    for number, (name, points) in enumerate(curve["lines"].items()):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker=".", color=colors[number % len(colors)], label=name)
    if curve["doubling"]:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_major_formatter("{x:g}×")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(curve["across"])
    axes.set_ylabel(curve["up"])
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    return figure


def _latencies(axes: Axes, subjects: list[Raw]) -> None:
    for name, marker in _PERCENTILES.items():
        found = [(subject["latency_us"].get(name), place) for place, subject in enumerate(subjects)]
        points = [(value, place) for value, place in found if value]
        axes.plot([x for x, _ in points], [y for _, y in points], marker, color=_OURS, markersize=4, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("latency, µs")
    axes.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=4)


def _import(result: Raw) -> Figure:
    """Entities and memory over time."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4))
    figure.suptitle(result["title"], x=0.01, ha="left", fontweight="bold")
    for name, fact in result["facts"].items():
        if isinstance(fact, list):
            side = name.rpartition(":")[0]
            left.plot([sample[1] for sample in fact], [sample[0] for sample in fact], label=side)
            if side != "memory":
                right.plot([sample[0] for sample in fact], [sample[2] / 2**20 for sample in fact], label=side)
    left.set_xlabel("seconds")
    left.set_ylabel("entities imported")
    right.set_xlabel("entities imported")
    right.set_ylabel("resident memory, MiB")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.legend(frameon=False)
    figure.tight_layout()
    return figure
