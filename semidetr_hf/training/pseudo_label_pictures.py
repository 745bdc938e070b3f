"""Pictures of pseudo-labels while a run goes on: weak and strong view of a few images of the last step."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from semidetr_hf.model import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.ssod.objective import StepLosses
from semidetr_hf.structures import PseudoLabels, UnlabeledBatch, View
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.visualization import contact_sheet, draw_boxes, enlarge_small

MOST_IMAGES = 4


class _KeptView(NamedTuple):
    title: str
    pixel_values: Tensor  # (3, h, w), normalised, without padding, on the CPU
    labels: PseudoLabels


class PseudoLabelPictures:
    """Keeps what the last step before an evaluation saw, until it is drawn.

    Args:
        category_names: name of every class label.
        image_mean: with which the views were normalised.
        image_std: likewise.
        eval_every: steps between two evaluations; of other steps nothing is kept.
        num_steps: of the run; the last one is evaluated, too.
    """

    def __init__(
        self,
        category_names: Sequence[str],
        image_mean: Sequence[float],
        image_std: Sequence[float],
        *,
        eval_every: int,
        num_steps: int,
    ) -> None:
        self.category_names = category_names
        self.mean, self.std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (image_mean, image_std))
        self.eval_every = eval_every
        self.num_steps = num_steps
        self._views: list[_KeptView] = []

    def observe(self, step: int, losses: StepLosses, unlabeled: UnlabeledBatch) -> None:
        """Keep the first images of a batch if an evaluation follows.

        Args:
            step: number of the optimizer step, 0-based.
            losses: what the objective returned.
            unlabeled: the images it returned it for.
        """
        made = step + 1
        if made % self.eval_every and made != self.num_steps:
            return
        self._views = []
        for row, image_id in enumerate(unlabeled.image_ids[:MOST_IMAGES]):
            for side, view, labels in (
                ("weak", unlabeled.weak, losses.confident_weak[row]),
                ("strong", unlabeled.strong, losses.confident[row]),
            ):
                title = f"{PurePath(str(image_id)).name}, {side} view: {len(labels)} labels"
                self._views.append(_KeptView(title, _unpadded(view, row), labels))

    def draw(self) -> Image.Image | None:
        """Return a sheet with a row of weak and strong view per image, and forget them; None if nothing was kept."""
        if not self._views:
            return None
        cells = [self._draw(view) for view in self._views]
        sheet = contact_sheet(cells, columns=2, titles=[view.title for view in self._views])
        self._views = []
        return sheet

    def _draw(self, view: _KeptView) -> Image.Image:
        pixels = ((view.pixel_values * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        image, factor = enlarge_small(Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())))
        names = [self.category_names[label] for label in view.labels.class_labels.tolist()]
        return draw_boxes(image, view.labels.boxes_xyxy.float().cpu() * factor, names, view.labels.scores.cpu())


def _unpadded(view: View, row: int) -> Tensor:
    height, width = view.image_sizes[row].tolist()
    return view.pixel_values[row, :, :height, :width].float().cpu()


def build_pictures(
    config: TrainingConfig, model: SemiDetrForObjectDetection, image_processor: SemiDetrImageProcessor
) -> PseudoLabelPictures:
    """Return what keeps the pictures of a run."""
    return PseudoLabelPictures(
        [str(name) for _, name in sorted((model.config.id2label or {}).items())],
        image_processor.image_mean,
        image_processor.image_std,
        eval_every=config.run.eval_every,
        num_steps=config.schedule.num_steps,
    )
