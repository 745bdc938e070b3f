"""Predictions that are not finite: every process learns of them at the same place.

A process that stopped alone would leave the others waiting for it in their next reduction, for ever. So the finding
travels with a reduction that takes place anyway, that of the number of boxes.
"""

import torch
from torch import Tensor

from semidetr_hf.model.criterion import DetectorPredictions, average_over_processes, least_count


class DivergedError(FloatingPointError):
    """Predictions hold NaN or infinity, on this process or on another; every process raises it at the same place.

    Attributes:
        what: the predictions, in words; None if only those of other processes are bad.
    """

    def __init__(self, what: str | None) -> None:
        super().__init__(f"{what or 'predictions of another process'} are not finite")
        self.what = what


def num_boxes_of_finite(predictions: DetectorPredictions, targets: list[dict[str, Tensor]], *, what: str) -> float:
    """Return the mean number of boxes per process, see `average_count`, of predictions that can be matched with them.

    Args:
        predictions: those of the matching queries are looked at; others cannot break the matching, only a loss.
        targets: per image `class_labels` (G,).
        what: the predictions in words, for the error.

    Raises:
        DivergedError: on every process, if the predictions of any are not finite: they cannot be matched.
    """
    matched = (predictions.logits, predictions.boxes, predictions.encoder_logits, predictions.encoder_boxes)
    is_finite = torch.stack([tensor.isfinite().all() for tensor in matched]).all()
    num_boxes = is_finite.new_tensor(sum(len(target["class_labels"]) for target in targets), dtype=torch.float32)
    mean_boxes, share_broken = average_over_processes(torch.stack([num_boxes, (~is_finite).float()])).tolist()
    if share_broken > 0:
        raise DivergedError(None if bool(is_finite) else what)
    return max(mean_boxes, least_count())


def require_costs(gathered: Tensor, *, own: list[Tensor]) -> None:
    """Stop every process if the matching costs of any are not numbers.

    Args:
        gathered: (N,) float, of all processes, see `gather_costs`.
        own: of this process.

    Raises:
        DivergedError: if so.
    """
    if gathered.isnan().any():
        here = any(bool(cost.isnan().any()) for cost in own)
        raise DivergedError("predictions on unlabeled images" if here else None)
