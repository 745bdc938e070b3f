"""Predictions that are not finite are told to every process at the same place."""

from dataclasses import replace

import pytest
import torch
from semi_step import WEIGHTS, build, semi_batch
from torch import Tensor

from semidetr_hf.model.criterion import DetectorPredictions
from semidetr_hf.ssod import divergence
from semidetr_hf.ssod.divergence import DivergedError, num_boxes_of_finite, require_costs
from semidetr_hf.structures import Stage

MATCHED = ["logits", "boxes", "encoder_logits", "encoder_boxes"]
BAD = [float("nan"), float("inf"), -float("inf")]


def targets(*counts: int) -> list[dict[str, Tensor]]:
    return [
        {"class_labels": torch.zeros(count, dtype=torch.int64), "boxes": torch.zeros(count, 4)} for count in counts
    ]


@pytest.fixture
def predictions() -> DetectorPredictions:
    objective, _ = build()
    batch = semi_batch().labeled
    return objective.decode(
        objective.student.encode(batch.view.pixel_values, batch.view.pixel_mask), batch.targets, denoise=True
    )[0]


def spoil(predictions: DetectorPredictions, name: str, value: float) -> DetectorPredictions:
    tensor = getattr(predictions, name).detach().clone()
    tensor.view(-1)[-1] = value
    return replace(predictions, **{name: tensor})


def test_finite_predictions_have_a_number_of_boxes(predictions) -> None:
    assert num_boxes_of_finite(predictions, targets(3, 2), what="predictions") == 5.0
    assert num_boxes_of_finite(predictions, targets(0, 0), what="predictions") == 1.0
    assert num_boxes_of_finite(predictions, [], what="predictions") == 1.0


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", MATCHED)
def test_a_single_number_that_is_not_finite_is_found(predictions, name: str, value: float) -> None:
    with pytest.raises(DivergedError, match="predictions on labeled images are not finite") as caught:
        num_boxes_of_finite(spoil(predictions, name, value), targets(1), what="predictions on labeled images")
    assert caught.value.what == "predictions on labeled images"


def test_denoising_cannot_break_the_matching(predictions) -> None:
    spoiled = spoil(predictions, "denoising_logits", float("nan"))
    assert num_boxes_of_finite(spoiled, targets(2), what="predictions") == 2.0


@pytest.mark.parametrize("broken_here", [False, True])
def test_the_finding_travels_with_the_number_of_boxes(predictions, monkeypatch, broken_here: bool) -> None:
    """Two processes; the other one has 4 boxes and broken predictions."""
    sent: list[list[float]] = []

    def average(values: Tensor) -> Tensor:
        sent.append(values.tolist())
        return (values + torch.tensor([4.0, 1.0])) / 2

    monkeypatch.setattr(divergence, "average_over_processes", average)
    own = spoil(predictions, "boxes", float("nan")) if broken_here else predictions
    with pytest.raises(DivergedError) as caught:
        num_boxes_of_finite(own, targets(2, 1), what="predictions")
    assert sent == [[3.0, float(broken_here)]]
    assert caught.value.what == ("predictions" if broken_here else None)
    assert str(caught.value).startswith("predictions" if broken_here else "predictions of another process")


def test_two_processes_share_the_lower_bound_of_the_number_of_boxes(predictions, monkeypatch) -> None:
    monkeypatch.setattr(divergence, "least_count", lambda: 0.5)
    monkeypatch.setattr(divergence, "average_over_processes", lambda values: values / 2)
    assert num_boxes_of_finite(predictions, targets(1), what="predictions") == 0.5
    assert num_boxes_of_finite(predictions, targets(0), what="predictions") == 0.5
    assert num_boxes_of_finite(predictions, targets(3), what="predictions") == 1.5


def test_costs_that_are_numbers_pass_and_infinite_ones_are_no_divergence() -> None:
    require_costs(torch.tensor([0.5, -1.0]), own=[torch.tensor([0.5, float("inf")]), torch.zeros(0)])
    require_costs(torch.zeros(0), own=[])


@pytest.mark.parametrize(("own", "what"), [([float("nan")], "predictions on unlabeled images"), ([0.5], None)])
def test_costs_of_any_process_that_are_no_numbers_stop_all(own: list[float], what: str | None) -> None:
    with pytest.raises(DivergedError) as caught:
        require_costs(torch.tensor([0.5, float("nan")]), own=[torch.zeros(0), torch.tensor(own)])
    assert caught.value.what == what


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("images", ["labeled", "strong"])
def test_a_step_on_a_broken_image_says_which_predictions_are_broken(stage: Stage, images: str) -> None:
    objective, teacher = build()
    batch = semi_batch()
    assert batch.unlabeled is not None
    view = batch.labeled.view if images == "labeled" else batch.unlabeled.strong
    view.pixel_values[1, :, 10, 10] = float("nan")
    where = "labeled" if images == "labeled" else "unlabeled"
    with pytest.raises(DivergedError) as caught:
        objective(batch, teacher, stage, WEIGHTS)
    assert caught.value.what == f"predictions on {where} images"
