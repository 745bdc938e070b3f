from pathlib import Path

import pytest
from small_runs import configure

from semidetr_hf.training.batch_scaling import scale_with_batch
from semidetr_hf.training.config import TrainingConfig


def run_for(folder: Path, meant_for: int | None, accumulation: int = 1) -> TrainingConfig:
    return configure(
        folder,
        data={"labeled_batch_size": 1, "unlabeled_batch_size": 4},
        optimizer={"learning_rate": 1e-4},
        schedule={"ema_momentum": 0.999},
        recipe={"scale_with_batch": meant_for},
        run={"gradient_accumulation_steps": accumulation},
    )


@pytest.mark.parametrize(
    ("meant_for", "accumulation", "processes", "images", "factor", "learning_rate", "momentum"),
    [
        # 8 x (1 + 4) = 40 images, as meant.
        (40, 1, 8, 40, 1.0, 1e-4, 0.999),
        (40, 8, 1, 40, 1.0, 1e-4, 0.999),
        # Two of eight processes: a quarter, 1e-4 / 2 and 0.999 ** 0.25.
        (40, 1, 2, 10, 0.25, 5e-5, 0.99974990616),
        # 160 images, four times as many: 1e-4 x 2 and 0.999 ** 4 = 0.998001 ** 2.
        (40, 4, 8, 160, 4.0, 2e-4, 0.996005996001),
    ],
)
def test_square_root_for_the_learning_rate_and_power_for_the_momentum(
    tmp_path: Path,
    meant_for: int,
    accumulation: int,
    processes: int,
    images: int,
    factor: float,
    learning_rate: float,
    momentum: float,
) -> None:
    config = run_for(tmp_path, meant_for, accumulation)
    scaling = scale_with_batch(config, num_processes=processes, has_unlabeled=True)
    assert (scaling.images_per_step, scaling.factor) == (images, factor)
    assert scaling.config.optimizer.learning_rate == pytest.approx(learning_rate, rel=1e-12)
    assert scaling.config.schedule.ema_momentum == pytest.approx(momentum, rel=1e-10)
    # What the run wrote into its config.yaml is not scaled a second time.
    again = scale_with_batch(scaling.config, num_processes=processes, has_unlabeled=True)
    assert (again.factor, again.config) == (1.0, scaling.config)


def test_supervised_steps_have_labeled_images_alone(tmp_path: Path) -> None:
    assert scale_with_batch(run_for(tmp_path, 8), num_processes=8, has_unlabeled=False).factor == 1.0


def test_without_a_batch_that_is_meant_the_settings_are_taken_as_given(tmp_path: Path) -> None:
    config = run_for(tmp_path, None)
    scaling = scale_with_batch(config, num_processes=2, has_unlabeled=True)
    assert (scaling.images_per_step, scaling.factor, scaling.config) == (10, 1.0, config)
