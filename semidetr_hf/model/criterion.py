"""The supervised loss: focal, L1 and GIoU over decoder layers, encoder proposals and denoising queries.

All prediction sets are handled at once: every loss is a vector with one entry per set.

Source: DINO (arXiv 2203.03605); weights of Semi-DETR (arXiv 2307.08095).

Legend: P prediction sets, B images, Q queries, C labels, N denoising queries, K matched pairs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .box_ops import cxcywh_to_xyxy, generalized_iou
from .denoising import DenoisingQueries
from .matching import HungarianMatcher, Matches, PaddedTargets, pad_targets


@dataclass(frozen=True)
class DetectorPredictions:
    """What the detector predicts for one batch; boxes are cxcywh normalised by the unpadded image.

    Attributes:
        logits: (P, B, Q, C), one entry per decoder layer, the last one is the result.
        boxes: (P, B, Q, 4).
        encoder_logits: (B, Q, C) of the proposals that became queries.
        encoder_boxes: (B, Q, 4).
        denoising_logits: (P, B, N, C), N = 0 without denoising.
        denoising_boxes: (P, B, N, 4).
        denoising: the answers of the denoising queries, None without denoising.
    """

    logits: Tensor
    boxes: Tensor
    encoder_logits: Tensor
    encoder_boxes: Tensor
    denoising_logits: Tensor
    denoising_boxes: Tensor
    denoising: DenoisingQueries | None = None


def average_num_boxes(targets: list[dict[str, Tensor]], device: torch.device) -> float:
    """Return the mean number of boxes per process, at least 1: the normaliser of official DINO."""
    num_boxes = torch.tensor(float(sum(len(target["class_labels"]) for target in targets)), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(num_boxes)
        num_boxes = num_boxes / torch.distributed.get_world_size()
    return max(num_boxes.item(), 1.0)


def sigmoid_focal_loss(logits: Tensor, is_class: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss of every entry, in float32.

    Args:
        logits: (...).
        is_class: (...) float, 1 where the class is right.
        alpha: weight of right classes; wrong ones weigh 1 - alpha.
        gamma: exponent that lowers the loss of easy entries.

    Source: Focal Loss (arXiv 1708.02002), eq. 5. Written out because torchvision's reduces over everything or nothing
    and does not promote bf16.
    """
    logits = logits.float()
    probabilities = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, is_class, reduction="none")
    missing = torch.where(is_class > 0, 1 - probabilities, probabilities)
    return torch.where(is_class > 0, alpha, 1 - alpha) * missing**gamma * cross_entropy


def loss_weight(name: str, *, class_weight: float, bbox_weight: float, giou_weight: float) -> float:
    """Return the weight of a loss by its name, e.g. "sup_loss_bbox_dn_3" -> bbox_weight.

    Raises:
        ValueError: if the name holds none of loss_ce, loss_bbox, loss_giou.
    """
    for kind, weight in (("loss_ce", class_weight), ("loss_bbox", bbox_weight), ("loss_giou", giou_weight)):
        if kind in name:
            return weight
    raise ValueError(f"no weight for the loss {name!r}: expected loss_ce, loss_bbox or loss_giou in its name")


class SetCriterion(nn.Module):
    """One-to-one criterion.

    Args:
        matcher: finds the query of every box.
        alpha: focal balance.
        gamma: focal exponent.
        class_agnostic_encoder: score encoder proposals as objects of label 0, as the released Semi-DETR code does;
            official DINO uses the true labels.
        auxiliary: also score all decoder layers but the last.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        *,
        alpha: float = 0.25,
        gamma: float = 2.0,
        class_agnostic_encoder: bool = False,
        auxiliary: bool = True,
    ):
        super().__init__()
        self.matcher = matcher
        self.alpha = alpha
        self.gamma = gamma
        self.class_agnostic_encoder = class_agnostic_encoder
        self.auxiliary = auxiliary

    def forward(
        self, predictions: DetectorPredictions, targets: list[dict[str, Tensor]], num_boxes: float
    ) -> dict[str, Tensor]:
        """Compare predictions with boxes.

        Args:
            predictions: of all layers.
            targets: per image `class_labels` (G,) int64 and `boxes` (G, 4) cxcywh normalised; G may be 0.
            num_boxes: normaliser, see `average_num_boxes`.

        Returns:
            Unweighted () float32 losses: `loss_ce`, `loss_bbox`, `loss_giou` of the last decoder layer, `..._{i}` of
            decoder layer i, `..._enc` of the encoder proposals and, with denoising, `..._dn` and `..._dn_{i}`. The set
            of names does not depend on the number of boxes, so that all processes report the same.
        """
        padded = pad_targets(targets, predictions.logits.device)
        first = 0 if self.auxiliary else len(predictions.logits) - 1
        decoder_layers = range(first, len(predictions.logits))
        names = [f"_{i}" for i in decoder_layers[:-1]] + [""]

        logits = torch.cat([predictions.logits[first:].float(), predictions.encoder_logits[None].float()])
        boxes = torch.cat([predictions.boxes[first:].float(), predictions.encoder_boxes[None].float()])
        labels = padded.class_labels.expand(len(logits), -1, -1).clone()
        if self.class_agnostic_encoder:
            labels[-1] = 0
        matches = self.matcher(logits, boxes, class_labels=labels, targets=padded)
        losses = self._losses(
            logits, boxes, labels=labels, matches=matches, targets=padded, normalizer=num_boxes, names=[*names, "_enc"]
        )
        if predictions.denoising is not None:
            losses |= self._denoising_losses(predictions, padded, num_boxes=num_boxes, first=first, names=names)
        return losses

    def _denoising_losses(
        self,
        predictions: DetectorPredictions,
        targets: PaddedTargets,
        *,
        num_boxes: float,
        first: int,
        names: list[str],
    ) -> dict[str, Tensor]:
        denoising = predictions.denoising
        if denoising is None:
            return {}
        logits, boxes = predictions.denoising_logits[first:].float(), predictions.denoising_boxes[first:].float()
        sets = torch.arange(len(logits), device=logits.device)
        matches = Matches(
            set_index=sets.repeat_interleave(len(denoising.query_index)),
            image_index=denoising.image_index.repeat(len(sets)),
            query_index=denoising.query_index.repeat(len(sets)),
            target_index=denoising.target_index.repeat(len(sets)),
        )
        return self._losses(
            logits,
            boxes,
            labels=targets.class_labels.expand(len(sets), -1, -1),
            matches=matches,
            targets=targets,
            normalizer=num_boxes * max(denoising.num_groups, 1),
            names=[f"_dn{name}" for name in names],
        )

    def _losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        *,
        labels: Tensor,
        matches: Matches,
        targets: PaddedTargets,
        normalizer: float,
        names: list[str],
    ) -> dict[str, Tensor]:
        """Return three losses per prediction set: logits (P, B, Q, C), boxes (P, B, Q, 4), labels (P, B, M)."""
        where = (matches.set_index, matches.image_index, matches.query_index)
        is_class = torch.zeros_like(logits)
        is_class[(*where, labels[matches.set_index, matches.image_index, matches.target_index])] = 1.0
        focal = sigmoid_focal_loss(logits, is_class, alpha=self.alpha, gamma=self.gamma).sum(dim=(1, 2, 3))  # (P,)

        predicted = boxes[where]  # (K, 4)
        wanted = targets.boxes[matches.image_index, matches.target_index]
        l1 = F.l1_loss(predicted, wanted, reduction="none").sum(-1)
        giou = 1 - generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
        totals = {
            "loss_ce": focal,
            "loss_bbox": focal.new_zeros(len(logits)).index_add(0, matches.set_index, l1),
            "loss_giou": focal.new_zeros(len(logits)).index_add(0, matches.set_index, giou),
        }
        return {
            f"{kind}{name}": value / normalizer
            for kind, total in totals.items()
            for name, value in zip(names, total.unbind(), strict=True)
        }
