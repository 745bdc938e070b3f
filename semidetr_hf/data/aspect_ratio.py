"""Batches of images of similar shape: there is less to pad, and the order can still be resumed at any batch.

Source: Semi-DETR's released code fills batches from two groups, wider than high and not, and walks an epoch from its
start. Here the draws are sorted within windows of a fixed length, so finer, and any window can be entered.
"""

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
from torch.utils.data import Sampler

from .images import stored_size
from .loading import PassSampler
from .sources import Source, ViewSource

WINDOW = 16  # batches; the headers of so many are read ahead, and so far may an image move in the order


class AspectRatioSampler(Sampler[tuple[int, int]]):
    """The draws of a `PassSampler`, window after window sorted by the shape of the images.

    A window of `WINDOW` batches is sorted by width / height and cut into batches, and those are shuffled. The order
    depends only on the seed and the number of the draw: windows are counted from the first draw of the run, and the
    last one is sorted whole even if the draws end within it. Every draw keeps the seed of its views.

    Args:
        draws: what to sort; it should start at a batch.
        source: tells the size of its images, see `ViewSource`; read when a window begins. An unreadable image counts
            as square.
        batch_size: draws in a batch.

    Raises:
        ValueError: if `batch_size` is not positive.
    """

    def __init__(self, draws: PassSampler, source: Source, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.draws, self.source, self.batch_size = draws, source, batch_size
        self._ratios = np.full(draws.num_images, np.nan, dtype=np.float32)  # nan = not looked at yet

    def __len__(self) -> int:
        return len(self.draws)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        given, length = self.draws, WINDOW * self.batch_size
        first, end = given.start // length, math.ceil(given.num_draws / length)
        whole = iter(PassSampler(given.num_images, end * length, given.seed, start=first * length))
        windows = (draw for window in range(first, end) for draw in self._sorted(list(islice(whole, length)), window))
        yield from islice(windows, given.start - first * length, given.num_draws - first * length)

    def _sorted(self, draws: list[tuple[int, int]], window: int) -> Iterator[tuple[int, int]]:
        draws.sort(key=lambda draw: self._ratio(draw[0]))
        # The third number keeps this stream apart from those of `PassSampler`.
        for batch in np.random.default_rng((self.draws.seed, window, 2)).permutation(WINDOW):
            yield from draws[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _ratio(self, index: int) -> float:
        if np.isnan(self._ratios[index]):
            source = self.source
            size = source.image_size(index) if isinstance(source, ViewSource) else stored_size(source.path(index))
            self._ratios[index] = 1.0 if size is None else size[1] / size[0]
        return float(self._ratios[index])
