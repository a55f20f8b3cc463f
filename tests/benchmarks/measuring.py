"""Figures: what is measured in turns, beside a floor or a peer, and how it is written down.

Ratios, not seconds: machines are noisy. What is compared takes turns (ours, the floor, and ours
again), so that whatever else the machine does weighs on both alike.
"""

from __future__ import annotations

import gc
import platform
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any, Protocol

from django.db import connection


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number, and what is promised of it."""

    benchmark: str
    what: str
    value: float
    #: What the value is of: "times" is ours against the floor; else "ms", "MiB", "queries", ...
    unit: str = "times"
    #: What is promised; None: nothing.
    at_most: float | None = None
    at_least: float | None = None
    #: What was compared, in words with units; "" where the value says all.
    ours: str = ""
    floor: str = ""
    database: str = ""
    rows: int = 0

    @property
    def is_kept(self) -> bool:
        """Tell whether the value, as it is printed, is what is promised."""
        value = round(self.value, 2)
        is_low = self.at_most is None or value <= self.at_most
        return is_low and (self.at_least is None or value >= self.at_least)

    @property
    def promise(self) -> str:
        """What is promised, in words; "" for nothing."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return "" if self.at_least is None else f"≥ {self.at_least:g}"


class Benchmark(Protocol):
    """A module of measurements."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add options of its own; each name is used by one module only."""

    def measure(self, arguments: Namespace) -> Iterable[Figure]:
        """Measure, and yield the figures as they come.

        ``arguments.rows`` is how large the journal is to be; fewer than 1,000,000 ask for a
        small version, which takes seconds and only shows that the benchmark works.
        """


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Seconds that ours and the floor took, a value a round, and their ratio in each."""

    ours: Sequence[float]
    floor: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Ours against the floor, round by round."""
        return [ours / floor for ours, floor in zip(self.ours, self.floor, strict=True)]

    def figure(self, benchmark: str, what: str, **fields: Any) -> Figure:
        """Return the median of the ratios as a figure."""
        return Figure(
            benchmark=benchmark,
            what=what,
            value=median(self.ratios),
            ours=duration_text(median(self.ours)),
            floor=duration_text(median(self.floor)),
            **{"database": connection.vendor, **fields},
        )


def in_turns(ours: Callable[[], object], floor: Callable[[], object], *, rounds: int) -> Turns:
    """Time ours, the floor, and ours again, ``rounds`` times; each once before, to warm up.

    What returns a float says itself how many seconds it took.
    """
    ours(), floor()
    times: dict[str, list[float]] = {"ours": [], "floor": []}
    for _ in range(rounds):
        before, between, after = seconds(ours), seconds(floor), seconds(ours)
        times["ours"].append((before + after) / 2)
        times["floor"].append(between)
    return Turns(ours=times["ours"], floor=times["floor"])


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action took, or what it says itself."""
    gc.collect()
    begun_at = perf_counter()
    said = action()
    took = perf_counter() - begun_at
    return said if isinstance(said, float) else took


def duration_text(duration: float) -> str:
    """Write seconds as people read them."""
    if duration < 1e-3:
        return f"{duration * 1e6:.0f} µs"
    return f"{duration * 1e3:.1f} ms" if duration < 1 else f"{duration:.2f} s"


def say(text: str) -> None:
    """Tell how far it is, on the error output: the other one is for the figures."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def as_line(figure: Figure, *, is_judged: bool) -> str:
    """Return a figure as a line of text: in brackets what ours took, and the floor."""
    compared = f"  ({figure.ours} / {figure.floor})" if figure.floor else ""
    verdict = "  NOT KEPT" if is_judged and not figure.is_kept else ""
    value = f"{figure.value:.2f} {figure.unit}"
    what = f"{figure.benchmark:10} {figure.what:58}"
    return f"{what} {value:>14} {figure.promise:8}{verdict}{compared}"


def as_markdown(figures: Iterable[Figure]) -> str:
    """Return figures as a table of Markdown."""
    lines = ["| what | database | rows | ours | floor | value | promised |", f"|{'---|' * 7}"]
    lines += [
        f"| {figure.what} | {figure.database} | {figure.rows:,} | {figure.ours} | {figure.floor} "
        f"| {figure.value:.2f} {figure.unit} | {figure.promise} |"
        for figure in figures
    ]
    return "\n".join(lines)


def as_json(figures: Iterable[Figure]) -> dict[str, Any]:
    """Return figures, and on what they were measured, as plain JSON."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "figures": [{**asdict(figure), "is_kept": figure.is_kept} for figure in figures],
    }
