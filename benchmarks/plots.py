"""Draws what an output costs, by how many streams there are: `make bench-plots`.

Measures anew, and writes the pictures of the documentation: of each point the least of some rounds,
which other programs disturbed least. With `--values FILE` it keeps what it has measured, or draws
what another run has kept. The same values give the same files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import handoff
import matplotlib as mpl
from contestants import CHAINED, OURS, QUEUE_EACH
from harness import CORES, NATIVE, PURE, alternate
from matplotlib.ticker import FuncFormatter

import streams

mpl.use("svg")

from matplotlib import pyplot as plt

FOLDER = Path(__file__).parents[1] / "docs" / "_static"
SLOTS = (1, 4, 16, 64, 256, 1_024, 4_096)
TASKS = (1, 4, 16, 64, 256, 1_024)
OUTPUTS, FEWEST_OUTPUTS, ROUNDS = 60_000, 250, 5
HANDED_OUT, FEWEST_STEPS = 24_000, 12
# Readable on white and on black.
GREY, GREEN, BLUE, ORANGE, RED = "#7b838b", "#12a150", "#3b82f6", "#e8830c", "#e5484d"

Curves = dict[str, list[float]]  # nanoseconds for an output, by the number of streams


def pulled() -> Curves:
    """Return what an output costs in one thread: streams read one after another."""
    curves: Curves = {}
    for size in SLOTS:
        lengths = streams.lengths_of(size, max(FEWEST_OUTPUTS, 2 * OUTPUTS // size))
        source = partial(streams.model, lengths)
        runs = streams.contestants_of(source, size, streams.one_after_another)
        for name, took in alternate(runs, ROUNDS).items():
            curves.setdefault(name, []).append(1e9 * min(took) / sum(lengths))
    return curves


def handed_over() -> Curves:
    """Return what an output costs that is handed from a thread to a task, paced."""
    curves: Curves = {}
    for size in TASKS:
        steps = max(FEWEST_STEPS, min(2_000, HANDED_OUT // size))
        names = (QUEUE_EACH, CHAINED, *OURS.values())
        seconds = handoff.timed({size: steps}, ROUNDS, paced=True, names=names)
        for name, by_size in seconds.items():
            curves.setdefault(name, []).append(1e9 * min(by_size[size]) / size)
    return curves


# How each curve is called and drawn; the first of a picture is the floor.
Looks = Mapping[str, tuple[str, str, str]]
PULLED: Looks = {
    streams.FLOOR: ("the source alone", GREY, ":"),
    NATIVE: ("batchstream, native", GREEN, "-"),
    PURE: ("batchstream, pure", BLUE, "-"),
    streams.DEQUES: ("deques by hand", ORANGE, "--"),
    streams.TEE: ("itertools.tee", RED, "--"),
}
HANDED_OVER: Looks = {
    handoff.FLOOR: ("the wake-ups of the loop alone", GREY, ":"),
    **{
        OURS[core]: (f"batchstream, {core}", colour, "-")
        for core, colour in ((NATIVE, GREEN), (PURE, BLUE))
        if core in CORES
    },
    QUEUE_EACH: ("an asyncio.Queue each", ORANGE, "--"),
    CHAINED: ("chained futures", RED, "--"),
}


def draw(
    file: Path, curves: Curves, looks: Looks, *, title: str, across: str, sizes: Sequence[int]
) -> None:
    """Write a picture."""
    style = {
        "svg.hashsalt": "batchstream",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "sans-serif"],
        "font.size": 11,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY
        ),
    }
    with mpl.rc_context(style):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        for curve, (label, colour, line) in looks.items():
            if curve in curves:
                marker = "" if line == ":" else "o"
                axes.plot(
                    sizes, curves[curve], line, color=colour, marker=marker, ms=4, label=label
                )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_xlabel(across)
        axes.yaxis.set_major_formatter(FuncFormatter(in_words))
        axes.yaxis.set_minor_formatter(FuncFormatter(in_words_if_few))
        axes.tick_params(axis="both", which="both", length=0)
        axes.set_title(title, loc="left", fontsize=12)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
        axes.spines[:].set_visible(False)
        axes.legend(frameon=False, fontsize=10)
        figure.savefig(file, transparent=True, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def in_words(nanoseconds: float, _: object = None) -> str:
    """Say how long."""
    return f"{nanoseconds:g} ns" if nanoseconds < 1e3 else f"{nanoseconds / 1e3:g} µs"


def in_words_if_few(nanoseconds: float, _: object = None) -> str:
    """Say how long, at every other mark between the powers of ten."""
    leading = f"{nanoseconds:.0e}"[0]
    return in_words(nanoseconds) if leading in "25" else ""


MEASURES: dict[str, Callable[[], Curves]] = {"pulled": pulled, "handed-over": handed_over}


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--values", type=Path, metavar="FILE", help="to be kept, or drawn")
    file = parser.parse_args().values
    if file is not None and file.exists():
        values = json.loads(file.read_text())
    else:
        values = {name: measure() for name, measure in MEASURES.items()}
    if file is not None:
        file.write_text(json.dumps(values, indent=1))
    draw(
        FOLDER / "cost-pulled.svg",
        values["pulled"],
        PULLED,
        title="Processor time of an output, read in one thread",
        across="slots of the batch",
        sizes=SLOTS,
    )
    draw(
        FOLDER / "cost-handed-over.svg",
        values["handed-over"],
        HANDED_OVER,
        title="Processor time of an output, handed from a thread to a task",
        across="streams, each read by a task",
        sizes=TASKS,
    )


if __name__ == "__main__":
    main()
