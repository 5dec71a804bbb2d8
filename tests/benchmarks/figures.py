"""Tables and plots of the samples that `suite.py` took."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ways import AGAIN, FIRST, PLAIN, TRL

__all__ = ["tables", "write"]

WAYS = (PLAIN, TRL, FIRST, AGAIN)

MARKS = ("<!-- figures: written by tests/benchmarks/suite.py -->", "<!-- end of figures -->")
TITLES = {
    "a": "(a) QLoRA, 1.1 B parameters",
    "b": "(b) QLoRA, 7.24 B parameters",
    "c": "(c) bfloat16, 1.1 B parameters",
    "d": "(d) 8 bits, 1.1 B parameters",
    "g": "(g) QLoRA on a GPU, 1.1 B parameters",
}
MEASURED = {
    "process": (
        ("whole process", "a whole process, s", 1),
        ("peak resident", "peak resident, GiB", 2**30),
        ("peak anonymous", "peak anonymous, GiB", 2**30),
        ("peak on the device", "peak on the device, GiB", 2**30),
    ),
    "inside": (
        ("model there", "libraries imported: model there, s", 1),
        ("weights in memory", "libraries imported: weights in memory, s", 1),
    ),
}
COLORS = {PLAIN: "#7f8c9b", TRL: "#b3a38a", FIRST: "#5b9bd5", AGAIN: "#1f5fa8"}

Sample = dict[str, Any]


def write(results: dict[str, Any], page: Path) -> None:
    """Put the tables into a page, between its marks, and draw a plot of every comparison of loads beside it.

    Parameters:
        results: what the suite's file holds.
        page: a Markdown page with the lines `MARKS`; one that isn't there is made.
    """
    text = tables(results)
    print(text)
    before, _, rest = (page.read_text() if page.is_file() else "").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2] or "\n"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}")
    for letter in TITLES:
        samples = [s for s in results["samples"] if s["benchmark"] == letter and s["how"] == "process"]
        if samples:
            draw(TITLES[letter], samples, page.parent / f"performance-{letter}.svg")


def tables(results: dict[str, Any]) -> str:
    """All tables, as Markdown."""
    found = [_about(results["about"])]
    samples = results["samples"]
    for letter, title in TITLES.items():
        own = [s for s in samples if s["benchmark"] == letter]
        if own:
            found.append(
                f"### {title}\n\n![{title}: seconds and peak memory](performance-{letter}.svg)\n\n{_loads(own)}"
            )
    if own := [s for s in samples if s["benchmark"] == "e"]:
        rows = [
            [
                f"`{s['what']}`" if s["unit"] == "s" else s["what"],
                _number(s["median"]),
                s["unit"],
                str(len(s["values"])),
            ]
            for s in own
        ]
        found.append("### (e) Planning and starting up\n\n" + _table(["", "median", "", "samples"], rows))
    if own := [s for s in samples if s["benchmark"] == "f"]:
        rows = [
            [
                s["profile"],
                *(f"{s[k] / 2**20:,.1f}" for k in ("estimate", "tensors", "resident")),
                f"{s['estimate'] / s['tensors'] - 1:+.2%}",
            ]
            for s in own
        ]
        head = [
            "profile",
            "estimated, MiB",
            "tensors, MiB",
            "resident memory grew by, MiB",
            "estimate against tensors",
        ]
        found.append("### (f) The plan's estimate of memory\n\n" + _table(head, rows))
    return "\n\n".join(part.rstrip("\n") for part in found) + "\n"


def _about(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return (
        f"{about['processor']} ({about['machine']}), {about['cores']} cores, {about['memory'] / 2**30:.1f} GiB, "
        f"{about['system']}; Python {about['python']}, {versions}. Medians, with how many times faster than from_pretrained; "
        "anonymous memory is what isn't a page of a file."
    )


def _loads(samples: Sequence[Sample]) -> str:
    """Medians of one comparison; a column for each way."""
    ways = [way for way in WAYS if any(s["way"] == way for s in samples)]
    rows = []
    for how, measured in MEASURED.items():
        for state in ("warm", "cold"):
            own = [s for s in samples if s["how"] == how and s["state"] == state]
            for key, label, unit in measured:
                values = {way: [s[key] / unit for s in own if s["way"] == way and key in s] for way in ways}
                if not any(values.values()):
                    continue
                number = min(len(v) for v in values.values())
                rows.append([f"{label}, {state} ({number})", *_beside(values, timed=unit == 1)])
    return _table(["page cache (samples)", *ways], rows)


def _beside(values: dict[str, list[float]], timed: bool) -> list[str]:
    """Medians, and for times the ratio to the first way."""
    medians = {way: statistics.median(v) if v else None for way, v in values.items()}
    base = medians.get(PLAIN)
    cells = []
    for way, median in medians.items():
        ratio = f" ({base / median:.2f} ×)" if timed and way != PLAIN and base and median else ""
        cells.append("" if median is None else f"{_number(median)}{ratio}")
    return cells


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(title: str, samples: Sequence[Sample], path: Path) -> None:
    """Draw seconds of whole processes and peaks of memory, a bar for each way, every sample a dot.

    Parameters:
        title: what is compared.
        samples: of whole processes.
        path: the SVG file.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": title, "svg.fonttype": "path", "font.size": 9})
    from matplotlib import pyplot

    ways = [way for way in WAYS if any(s["way"] == way for s in samples)]
    states = [state for state in ("warm", "cold") if any(s["state"] == state for s in samples)]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(9, 0.9 + 0.42 * len(ways) * len(states)), layout="constrained"
    )
    labels = []
    for place, (way, state) in enumerate((way, state) for state in states for way in ways):
        own = [s for s in samples if s["way"] == way and s["state"] == state]
        labels.append(f"{way}, {state}" if len(states) > 1 else way)
        if not own:
            continue
        seconds = [s["whole process"] for s in own]
        resident, anonymous = (
            statistics.median(s[k] for s in own) / 2**30 for k in ("peak resident", "peak anonymous")
        )
        left.barh(place, statistics.median(seconds), color=COLORS[way], height=0.66)
        left.plot(seconds, [place] * len(seconds), ".", color="black", markersize=3)
        left.annotate(f" {_number(statistics.median(seconds))} s", (max(seconds), place), va="center")
        right.barh(place, resident, color=COLORS[way], height=0.66, alpha=0.35)
        right.barh(place, anonymous, color=COLORS[way], height=0.66)
        right.annotate(f" {anonymous:.2f} of {resident:.2f} GiB", (resident, place), va="center")
    for axis, name in (
        (left, "seconds of a whole process"),
        (right, "peak memory: anonymous (dark) of resident, GiB"),
    ):
        axis.set_yticks(range(len(labels)), labels)
        axis.invert_yaxis()
        axis.set_xlabel(name)
        axis.margins(x=0.32)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    right.set_yticklabels([])
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
