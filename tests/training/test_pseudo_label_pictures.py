from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from tiny_step import semi_batch

from semidetr_hf.ssod.objective import StepLosses
from semidetr_hf.structures import PseudoLabels, UnlabeledBatch
from semidetr_hf.training.pseudo_label_pictures import MOST_IMAGES, PseudoLabelPictures
from semidetr_hf.visualization import PREDICTION_COLOR

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.5]


def labels(*boxes: list[float]) -> PseudoLabels:
    return PseudoLabels(
        boxes_xyxy=torch.tensor(boxes).reshape(-1, 4),
        class_labels=torch.zeros(len(boxes), dtype=torch.int64),
        scores=torch.full((len(boxes),), 0.9),
    )


def unlabeled(num_images: int = 2) -> UnlabeledBatch:
    batch = semi_batch(num_images).unlabeled
    assert batch is not None
    # The color of a picture where its pixels are 0 is the mean.
    views = [
        replace(view, pixel_values=torch.zeros_like(view.pixel_values), image_sizes=view.image_sizes - 10)
        for view in (batch.weak, batch.strong)
    ]
    return UnlabeledBatch(weak=views[0], strong=views[1], image_ids=[f"a/{i}.png" for i in range(num_images)])


def losses(num_images: int = 2) -> StepLosses:
    return StepLosses(
        confident=[labels([10, 30, 40, 50])] * num_images,
        confident_weak=[labels([10, 30, 40, 50], [50, 20, 70, 40])] * num_images,
    )


def pictures(eval_every: int = 2, num_steps: int = 7) -> PseudoLabelPictures:
    return PseudoLabelPictures(["cat"], MEAN, STD, eval_every=eval_every, num_steps=num_steps)


def marks(picture: Image.Image) -> int:
    """Count pixels in the color of boxes."""
    color = np.array(tuple(int(PREDICTION_COLOR[i : i + 2], 16) for i in (1, 3, 5)))
    return int((np.asarray(picture) == color).all(axis=-1).sum())


def test_a_row_per_image_shows_weak_and_strong_view_in_their_own_colors() -> None:
    kept = pictures()
    kept.observe(1, losses(), unlabeled())
    sheet = kept.draw()
    assert sheet is not None
    # Views of 86 x 54 pixels without padding, enlarged 5 times; a gap of 8 around each.
    assert sheet.width == 2 * (86 * 5 + 8) + 8
    assert sheet.height > 2 * (54 * 5 + 8)
    below = sheet.getpixel((sheet.width // 4, sheet.height - 20))
    assert below == tuple(round(255 * value) for value in MEAN)
    weak, strong = (sheet.crop((x, 0, x + sheet.width // 2, sheet.height)) for x in (0, sheet.width // 2))
    assert marks(weak) > 1.2 * marks(strong) > 0  # two boxes of the teacher, of which one is left


def test_only_steps_before_an_evaluation_are_kept_and_drawn_once() -> None:
    kept = pictures(eval_every=2, num_steps=7)
    drawn = []
    for step in range(7):
        kept.observe(step, losses(), unlabeled())
        drawn.append(kept.draw() is not None)
        assert kept.draw() is None
    assert drawn == [False, True, False, True, False, True, True]


def test_what_is_kept_are_the_first_images_of_the_newest_batch() -> None:
    kept = pictures()
    kept.observe(1, losses(1), unlabeled(1))
    kept.observe(1, losses(6), unlabeled(6))
    sheet = kept.draw()
    assert sheet is not None
    assert sheet.height // (54 * 5) == MOST_IMAGES


def test_images_without_pseudo_labels_are_shown_all_the_same() -> None:
    kept = pictures()
    kept.observe(1, StepLosses(confident=[labels()] * 2, confident_weak=[labels()] * 2), unlabeled())
    sheet = kept.draw()
    assert sheet is not None
    assert marks(sheet) == 0
