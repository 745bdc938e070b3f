"""Learning rate and momentum of the teacher that follow the number of images of a step.

Sources: Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms" (arXiv 2205.10287): with
k times as many images the learning rate of Adam grows by the square root of k. Its rule for the betas and epsilon is
left out. Busbridge et al. 2023, "How to Scale Your EMA" (arXiv 2307.13813): the momentum m becomes m ** k, so that the
average reaches back over as many images as before.
"""

import math
from dataclasses import dataclass, replace

from semidetr_hf.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class BatchScaling:
    """How a run was fitted to the number of its processes.

    Attributes:
        images_per_step: labeled and unlabeled ones of all processes.
        factor: on the number of images for which the settings are meant; 1 if they are taken as given.
        config: of the run, with what follows from it.
    """

    images_per_step: int
    factor: float
    config: TrainingConfig


def scale_with_batch(config: TrainingConfig, *, num_processes: int, has_unlabeled: bool) -> BatchScaling:
    """Fit learning rate and momentum of the teacher to the batch, if `scale_with_batch` says for which they are meant.

    What is returned is not scaled a second time: its `scale_with_batch` is the number of images that it has.

    Args:
        config: of the run.
        num_processes: each has batches of its own.
        has_unlabeled: whether there are unlabeled images, which count like labeled ones.
    """
    data, meant_for = config.data, config.recipe.scale_with_batch
    own = data.labeled_batch_size + (data.unlabeled_batch_size if has_unlabeled else 0)
    images = own * config.run.gradient_accumulation_steps * num_processes
    if meant_for is None:
        return BatchScaling(images_per_step=images, factor=1.0, config=config)
    factor = images / meant_for
    scaled = replace(
        config,
        optimizer=replace(config.optimizer, learning_rate=config.optimizer.learning_rate * math.sqrt(factor)),
        schedule=replace(config.schedule, ema_momentum=config.schedule.ema_momentum**factor),
        recipe=replace(config.recipe, scale_with_batch=images),
    )
    return BatchScaling(images_per_step=images, factor=factor, config=scaled)
