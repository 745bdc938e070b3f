"""Timing several things against each other on a machine that may be busy."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def time_in_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every call, `rounds` times each, after one call of each that is not counted.

    The calls alternate, so that what slows the machine for a while slows all of them.
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_seconds(seconds: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(seconds)


def median_ratio(peer: Sequence[float], own: Sequence[float], digits: int = 2) -> float:
    """Return how many times faster than the peer something is: the median of the ratios of neighbours in time."""
    return round(statistics.median(p / o for p, o in zip(peer, own, strict=True)), digits)


def markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows with the same keys as a table."""
    if not rows:
        return "(no rows)"
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(row[key]) for key in head) + " |" for row in rows])
