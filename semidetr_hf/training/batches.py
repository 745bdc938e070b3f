"""The batches of one process, from any optimizer step on."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from semidetr_hf.data.aspect_ratio import AspectRatioSampler
from semidetr_hf.data.images import UnreadableImageError
from semidetr_hf.data.loading import LabeledDataset, PassSampler, UnlabeledDataset, view_loader
from semidetr_hf.ssod.schedule import StageSchedule
from semidetr_hf.structures import SemiBatch
from semidetr_hf.training.config import TrainingConfig

logger = logging.getLogger(__name__)


class TrainingBatches:
    """Labeled and unlabeled images, in an order that depends on the seed and the step alone.

    Batch b of the run goes to process b modulo the number of processes, so every image of a pass is drawn once over
    all of them.

    Args:
        config: batch sizes, seed, accumulation, workers, whether batches are grouped by aspect ratio.
        schedule: says which steps see unlabeled images.
        accelerator: says which process this is.
        labeled: makes the labeled views.
        unlabeled: makes the unlabeled ones; None for supervised training.
        start: number of the optimizer step to begin with.
    """

    def __init__(
        self,
        config: TrainingConfig,
        schedule: StageSchedule,
        accelerator: Accelerator,
        *,
        labeled: LabeledDataset,
        unlabeled: UnlabeledDataset | None,
        start: int = 0,
    ):
        self.accelerator = accelerator
        self.datasets: dict[str, LabeledDataset | UnlabeledDataset] = {"labeled": labeled}
        self._repeats = config.run.gradient_accumulation_steps * accelerator.num_processes
        self._num_workers = config.data.num_workers
        self._groups_by_aspect_ratio = config.data.group_by_aspect_ratio
        self.num_unlabeled_per_step = config.data.unlabeled_batch_size * self._repeats  # on all processes
        data, seed, num_steps = config.data, config.run.seed, config.schedule.num_steps
        self.labeled = self._batches(
            labeled, data.labeled_batch_size, num_steps=num_steps, start=min(start, num_steps), seed=seed
        )
        self.unlabeled: Iterator[Any] | None = None
        if unlabeled is not None:
            self.datasets["unlabeled"] = unlabeled
            first = schedule.burn_in_steps
            self.unlabeled = self._batches(
                unlabeled,
                data.unlabeled_batch_size,
                num_steps=num_steps - first,
                start=min(max(start - first, 0), num_steps - first),
                seed=seed + 1,
            )

    def _batches(
        self, dataset: LabeledDataset | UnlabeledDataset, batch_size: int, *, num_steps: int, start: int, seed: int
    ) -> Iterator[Any]:
        per_step = self._repeats * batch_size
        draws = PassSampler(len(dataset), num_steps * per_step, seed=seed, start=start * per_step)
        groups = self._groups_by_aspect_ratio
        loader = view_loader(
            dataset,
            AspectRatioSampler(draws, dataset.source, batch_size) if groups else draws,
            batch_size=batch_size,
            num_workers=self._num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        return iter(self.accelerator.prepare(loader))

    def next(self, *, with_unlabeled: bool) -> SemiBatch:
        """Return the next batch of this process.

        Raises:
            UnreadableImageError: if many images in a row cannot be read.
            ChildProcessError: if a loader worker died.
        """
        unlabeled = self._take(self.unlabeled) if with_unlabeled and self.unlabeled is not None else None
        return SemiBatch(labeled=self._take(self.labeled), unlabeled=unlabeled)

    @contextmanager
    def telling_dead_workers(self) -> Iterator[None]:
        """Say what to do when a loader worker dies; torch raises wherever this process is just then.

        Raises:
            ChildProcessError: if one does.
        """
        try:
            yield
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            reason = " ".join(str(error).split())
            raise ChildProcessError(
                f"a process that loads images died ({reason}): out of memory or of shared memory (/dev/shm)? lower "
                f"num_workers={self._num_workers}, at 0 no process is needed"
            ) from error

    def _take(self, batches: Iterator[Any]) -> Any:
        try:
            with self.telling_dead_workers():
                return next(batches)
        except UnreadableImageError as error:
            # From a worker it comes with the stack trace of the worker; what it says stands at the end.
            raise UnreadableImageError(str(error).rpartition("UnreadableImageError: ")[2].strip()) from error

    def close(self) -> None:
        """Run the loaders to their end, which ends their workers; only to be called after the last step."""
        for batches in filter(None, (self.labeled, self.unlabeled)):
            next(batches, None)

    def unreadable(self) -> dict[str, list[int]]:
        """Return, by role, the places of images that this process found unreadable."""
        return {role: dataset.is_unreadable.nonzero().flatten().tolist() for role, dataset in self.datasets.items()}

    def mark_unreadable(self, places: dict[str, list[int]]) -> None:
        """Take back what `unreadable` returned."""
        for role, dataset in self.datasets.items():
            dataset.is_unreadable[torch.tensor(places.get(role, []), dtype=torch.int64)] = True

    def num_unreadable(self) -> int:
        """Return how many images could not be read so far, on all processes and in all loader workers together."""
        flags = [dataset.is_unreadable.to(self.accelerator.device, torch.int64) for dataset in self.datasets.values()]
        return sum(int((self.accelerator.reduce(flag) > 0).sum()) for flag in flags)
