"""Instruments: counts of pseudo-labels, matching costs and their mixture, by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from semidetr_hf.ssod.objective import StepLosses
from semidetr_hf.structures import PseudoLabels, UnlabeledBatch, View
from semidetr_hf.training.instruments import Instruments
from semidetr_hf.training.metrics import JsonlLog

# Two images; the second one shows nothing.
HIDDEN = {
    "a": (torch.tensor([[0.0, 0, 10, 10], [20.0, 20, 40, 40]]), torch.tensor([0, 1])),
    "b": (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
}


def labels_of(boxes: list[list[float]], classes: list[int], scores: list[float]) -> PseudoLabels:
    return PseudoLabels(
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        class_labels=torch.tensor(classes, dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )


def batch(image_ids: list[str]) -> UnlabeledBatch:
    count = len(image_ids)
    view = View(
        pixel_values=torch.zeros(count, 3, 64, 64),
        pixel_mask=torch.ones(count, 64, 64, dtype=torch.int64),
        image_sizes=torch.tensor([[64, 64]] * count),
        homographies=torch.eye(3, dtype=torch.float64).expand(count, 3, 3),
    )
    return UnlabeledBatch(weak=view, strong=view, image_ids=image_ids)


NOTHING = labels_of([], [], [])
# Of image a: the first is right with an IoU of 8 x 10 / 100, the second has the wrong class, the third is elsewhere.
CANDIDATES = labels_of([[0, 0, 8, 10], [20, 20, 40, 40], [50, 50, 60, 60]], [0, 0, 1], [0.9, 0.5, 0.3])


def losses(costs: list[Tensor] | None = None, threshold: float | None = None, *, mined: bool = True) -> StepLosses:
    return StepLosses(
        supervised={},
        candidates=[CANDIDATES, NOTHING],
        confident=[CANDIDATES[torch.tensor([0])], NOTHING],
        mined=[CANDIDATES[torch.tensor([0, 1])], NOTHING] if mined else [],
        costs=costs or [],
        cost_threshold=threshold,
    )


def instruments(folder: Path | None, every: int = 1) -> Instruments:
    return Instruments(HIDDEN, folder, rule="mean", record_costs_every=every)


def test_counts_of_a_step_by_hand(tmp_path: Path) -> None:
    measured = instruments(tmp_path)
    measured.observe(7, losses(), batch(["a", "b"]))
    [row] = JsonlLog(tmp_path / "pseudo_labels.jsonl").rows()
    iou = pytest.approx(0.8)
    assert row == {
        "step": 7,
        "candidates": {"matched": 1, "predicted": 3, "true": 2, "iou_sum": iou},
        "confident": {"matched": 1, "predicted": 1, "true": 2, "iou_sum": iou},
        "mined": {"matched": 1, "predicted": 2, "true": 2, "iou_sum": iou},
    }
    assert measured.compute() == {
        "quality/candidates_precision": pytest.approx(1 / 3),
        "quality/candidates_recall": 0.5,
        "quality/candidates_mean_iou": iou,
        "quality/confident_precision": 1.0,
        "quality/confident_recall": 0.5,
        "quality/confident_mean_iou": iou,
        "quality/mined_precision": 0.5,
        "quality/mined_recall": 0.5,
        "quality/mined_mean_iou": iou,
    }


def test_steps_add_up_until_they_are_read(tmp_path: Path) -> None:
    measured = instruments(tmp_path)
    empty = StepLosses(supervised={}, candidates=[NOTHING], confident=[NOTHING])
    measured.observe(0, losses(mined=False), batch(["a", "b"]))
    measured.observe(1, empty, batch(["a"]))
    row = measured.compute()
    # 1 of 3 and 0 of 0 pseudo-labels are right; 1 of 2 and 0 of 2 hidden boxes were found.
    assert row["quality/candidates_precision"] == pytest.approx(1 / 3)
    assert row["quality/candidates_recall"] == 0.25
    assert not any("mined" in name for name in row)
    assert measured.compute() == {}
    # What is undefined is left out: nothing was predicted, and image b has nothing to find.
    measured.observe(2, empty, batch(["b"]))
    assert measured.compute() == {}
    assert [row["step"] for row in JsonlLog(tmp_path / "pseudo_labels.jsonl").rows()] == [0, 1, 2]


def test_costs_and_their_mixture(tmp_path: Path) -> None:
    costs = [torch.tensor([-2.0, 1.0, float("inf")]), torch.zeros(0)]
    instruments(tmp_path).observe(3, losses(costs, threshold=-2.0), batch(["a", "b"]))
    [row] = JsonlLog(tmp_path / "costs.jsonl").rows()
    # A box without a query costs nothing that can be compared; two costs are two components of their own.
    assert (row["step"], row["costs"], row["correct"], row["threshold"]) == (3, [-2.0, 1.0], [True, False], -2.0)
    assert row["weights"] == pytest.approx([0.5, 0.5], abs=1e-3)
    assert row["means"] == pytest.approx([-2.0, 1.0], abs=1e-3)
    # The regularization of the mixture.
    assert row["variances"] == pytest.approx([1e-5, 1e-5], rel=0.1)


def test_costs_without_a_mixture_and_without_a_threshold(tmp_path: Path) -> None:
    measured = instruments(tmp_path)
    measured.observe(0, losses([torch.full((3,), float("inf")), torch.zeros(0)], -float("inf")), batch(["a", "b"]))
    measured.observe(1, losses([torch.full((3,), 0.5), torch.zeros(0)], 0.5), batch(["a", "b"]))
    first, second = JsonlLog(tmp_path / "costs.jsonl").rows()
    nothing = {"weights": None, "means": None, "variances": None}
    assert first == {"step": 0, "costs": [], "correct": [], **nothing, "threshold": None}
    assert second == {"step": 1, "costs": [0.5] * 3, "correct": [True, False, False], **nothing, "threshold": 0.5}


def test_costs_are_recorded_once_in_a_while(tmp_path: Path) -> None:
    measured = instruments(tmp_path, every=3)
    for step in range(7):
        measured.observe(step, losses([torch.tensor([0.0, 1.0, 2.0]), torch.zeros(0)], 0.0), batch(["a", "b"]))
    assert [row["step"] for row in JsonlLog(tmp_path / "costs.jsonl").rows()] == [0, 3, 6]
    assert len(JsonlLog(tmp_path / "pseudo_labels.jsonl").rows()) == 7


def test_other_processes_count_and_write_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    measured = instruments(None)
    measured.observe(0, losses([torch.tensor([0.0, 1.0, 2.0]), torch.zeros(0)], 0.0), batch(["a", "b"]))
    assert measured.compute()["quality/confident_precision"] == 1.0
    assert list(tmp_path.iterdir()) == []


def test_files_of_an_earlier_run_are_replaced(tmp_path: Path) -> None:
    for step in (1, 2):
        instruments(tmp_path).observe(step, losses(), batch(["a", "b"]))
    assert [row["step"] for row in JsonlLog(tmp_path / "pseudo_labels.jsonl").rows()] == [2]


def test_an_image_without_hidden_labels_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="'c' is not among the 2 images"):
        instruments(tmp_path).observe(0, losses(), batch(["a", "c"]))
