"""The bar of what a reader or writer does once for every image."""

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

QUICK = 1.0  # seconds; what takes no longer needs no bar


def with_bar(items: Iterable[Item], total: int, what: str, *, unit: str = " images") -> Iterator[Item]:
    """Yield the items while a bar on the terminal shows rate and remaining time; only the first process shows one.

    Args:
        items: anything; the bar moves when the next one is asked for.
        total: how many there are.
        what: is being done, such as "reading sizes".
        unit: of the rate.
    """
    # The launcher numbers the processes of a machine here before any of our code runs.
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    # None: not where stderr is a file.
    yield from tqdm(
        items, total=total, desc=what, unit=unit, disable=None if is_first else True, delay=QUICK, leave=False
    )
