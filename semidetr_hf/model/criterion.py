"""The supervised loss: focal, L1 and GIoU over decoder layers, encoder proposals and denoising queries.

All prediction sets are handled at once: every loss is a vector with one entry per set.

Source: DINO (arXiv 2203.03605); weights of Semi-DETR (arXiv 2307.08095).

Legend: P prediction sets, B images, Q queries, C labels, N denoising queries, K matched pairs.
"""

from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class StackedPredictions:
    """The decoder layers that are scored and, last, the encoder proposals, in one tensor each.

    Attributes:
        logits: (P, B, Q, C) float32.
        boxes: (P, B, Q, 4) float32, cxcywh normalised.
        class_labels: (P, B, M) int64, the labels that each set is compared with.
        suffixes: P endings of loss names: "_0", "_1", ... "" (last decoder layer), "_enc".
    """

    logits: Tensor
    boxes: Tensor
    class_labels: Tensor
    suffixes: list[str]


def stack_predictions(
    predictions: DetectorPredictions, targets: PaddedTargets, *, class_agnostic_encoder: bool, auxiliary: bool
) -> StackedPredictions:
    """Put all prediction sets that are matched into one tensor.

    Args:
        predictions: of all layers.
        targets: the boxes.
        class_agnostic_encoder: compare encoder proposals with label 0 instead of the true labels.
        auxiliary: take all decoder layers, not only the last one.
    """
    first = 0 if auxiliary else len(predictions.logits) - 1
    logits = torch.cat([predictions.logits[first:].float(), predictions.encoder_logits[None].float()])
    labels = targets.class_labels.expand(len(logits), -1, -1).clone()
    if class_agnostic_encoder:
        labels[-1] = 0
    return StackedPredictions(
        logits=logits,
        boxes=torch.cat([predictions.boxes[first:].float(), predictions.encoder_boxes[None].float()]),
        class_labels=labels,
        suffixes=[*_layer_suffixes(first, len(predictions.logits)), "_enc"],
    )


def _layer_suffixes(first: int, num_layers: int) -> list[str]:
    return [f"_{i}" for i in range(first, num_layers - 1)] + [""]


def average_over_processes(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes; without several processes the tensor itself.

    Every process must call it the same number of times, also when it has nothing to count.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = values.clone()
        torch.distributed.all_reduce(values)
        values = values / torch.distributed.get_world_size()
    return values


def least_count() -> float:
    """Return the lower bound of a mean count over processes: 1 for all of them together.

    Then N processes give the loss of one with all their images, however few boxes there are. Official DINO and the
    released Semi-DETR code bound the mean by 1.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return 1 / (torch.distributed.get_world_size() if distributed else 1)


def average_count(count: Tensor) -> Tensor:
    """Return the mean of a count over all processes, the normaliser of a loss, bounded by `least_count`."""
    return average_over_processes(count).clamp(min=least_count())


def average_num_boxes(targets: list[dict[str, Tensor]], device: torch.device) -> Tensor:
    """Return the mean number of boxes per process, () on `device`, see `average_count`."""
    # Filled in on the device: copied there, it would make the host wait.
    return average_count(torch.full((), float(sum(len(t["class_labels"]) for t in targets)), device=device))


def zero_if_finite(predictions: StackedPredictions) -> Tensor:
    """Return a () 0, or NaN if any logit or box is not finite.

    Added to a loss: predictions that are not finite may escape the matching, and the loss must tell of them. To look
    at them here and now would make the host wait for the device.
    """
    return (predictions.logits.detach().sum() + predictions.boxes.detach().sum()) * 0


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
        class_normalizer: divide the class loss by the mean number of boxes per process ("global", official DINO), or
            by that of this process alone ("process", the released Semi-DETR code, which also averages the denoising
            queries themselves over processes instead of multiplying mean boxes by its own number of copies).
        denoise_empty_images: count the denoising queries of an image without boxes as background (official DINO); the
            released Semi-DETR code leaves them out.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        *,
        alpha: float = 0.25,
        gamma: float = 2.0,
        class_agnostic_encoder: bool = False,
        auxiliary: bool = True,
        class_normalizer: Literal["global", "process"] = "global",
        denoise_empty_images: bool = True,
    ):
        super().__init__()
        self.matcher = matcher
        self.alpha = alpha
        self.gamma = gamma
        self.class_agnostic_encoder = class_agnostic_encoder
        self.auxiliary = auxiliary
        self.class_normalizer = class_normalizer
        self.denoise_empty_images = denoise_empty_images

    def forward(
        self, predictions: DetectorPredictions, targets: list[dict[str, Tensor]], num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Compare predictions with boxes.

        Args:
            predictions: of all layers.
            targets: per image `class_labels` (G,) int64 and `boxes` (G, 4) cxcywh normalised; G may be 0.
            num_boxes: normaliser, see `average_num_boxes`.

        Returns:
            Unweighted () float32 losses: `loss_ce`, `loss_bbox`, `loss_giou` of the last decoder layer, `..._{i}` of
            decoder layer i, `..._enc` of the encoder proposals and, with denoising, `..._dn` and `..._dn_{i}`. The set
            of names does not depend on the number of boxes, so that all processes report the same. `loss_ce` is NaN if
            any of the predictions that are matched is not finite.
        """
        padded = pad_targets(targets, predictions.logits.device)
        stacked = stack_predictions(
            predictions, padded, class_agnostic_encoder=self.class_agnostic_encoder, auxiliary=self.auxiliary
        )
        matches = self.matcher(stacked.logits, stacked.boxes, class_labels=stacked.class_labels, targets=padded)
        losses = self._losses(stacked, matches, padded, num_boxes=num_boxes)
        losses["loss_ce"] = losses["loss_ce"] + zero_if_finite(stacked)
        return losses | self.denoising_losses(predictions, padded, num_boxes=num_boxes)

    def denoising_losses(
        self, predictions: DetectorPredictions, targets: PaddedTargets, *, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        """Compare the denoising queries with the boxes they were made from.

        Args:
            predictions: of all layers.
            targets: the boxes of the denoising queries, the same as in `forward`.
            num_boxes: normaliser, see `average_num_boxes`.

        Returns:
            Losses as in `forward`, names `..._dn` and `..._dn_{i}`; empty without denoising.
        """
        denoising = predictions.denoising
        if denoising is None:
            return {}
        num_layers = len(predictions.denoising_logits)
        first = 0 if self.auxiliary else num_layers - 1
        sets = torch.arange(num_layers - first, device=predictions.denoising_logits.device)
        matches = Matches(
            set_index=sets.repeat_interleave(len(denoising.query_index)),
            image_index=denoising.image_index.repeat(len(sets)),
            query_index=denoising.query_index.repeat(len(sets)),
            target_index=denoising.target_index.repeat(len(sets)),
        )
        stacked = StackedPredictions(
            logits=predictions.denoising_logits[first:].float(),
            boxes=predictions.denoising_boxes[first:].float(),
            class_labels=targets.class_labels.expand(len(sets), -1, -1),
            suffixes=[f"_dn{suffix}" for suffix in _layer_suffixes(first, num_layers)],
        )
        counts = [count > 0 or self.denoise_empty_images for count in targets.counts]
        return self._losses(
            stacked,
            matches,
            targets,
            num_boxes=num_boxes,
            copies=max(denoising.num_groups, 1),
            counts_image=torch.tensor(counts).to(stacked.logits.device, non_blocking=True),
        )

    def _losses(
        self,
        predictions: StackedPredictions,
        matches: Matches,
        targets: PaddedTargets,
        *,
        num_boxes: Tensor,
        copies: int = 1,
        counts_image: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return three losses per prediction set.

        Args:
            predictions: P sets.
            matches: which prediction answers which box.
            targets: the boxes.
            num_boxes: mean number of boxes per process.
            copies: how often each box is answered.
            counts_image: (B,) bool, which images have a class loss; None = all.
        """
        logits, boxes = predictions.logits, predictions.boxes
        where = (matches.set_index, matches.image_index, matches.query_index)
        is_class = torch.zeros_like(logits)
        labels = predictions.class_labels[matches.set_index, matches.image_index, matches.target_index]
        is_class[(*where, labels)] = 1.0
        focal = sigmoid_focal_loss(logits, is_class, alpha=self.alpha, gamma=self.gamma).sum(dim=(2, 3))  # (P, B)
        focal = (focal if counts_image is None else focal * counts_image).sum(dim=1)

        predicted = boxes[where]  # (K, 4)
        wanted = targets.boxes[matches.image_index, matches.target_index]
        l1 = F.l1_loss(predicted, wanted, reduction="none").sum(-1)
        giou = 1 - generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
        class_boxes = box_boxes = num_boxes * copies
        if self.class_normalizer == "process":
            # Processes may have different numbers of denoising copies: boxes are averaged together with them.
            own = logits.new_full((), float(sum(targets.counts) * copies))
            class_boxes, box_boxes = own.clamp(min=1), average_count(own)
        totals = {
            "loss_ce": focal / class_boxes,
            "loss_bbox": focal.new_zeros(len(logits)).index_add(0, matches.set_index, l1) / box_boxes,
            "loss_giou": focal.new_zeros(len(logits)).index_add(0, matches.set_index, giou) / box_boxes,
        }
        return name_losses(totals, predictions.suffixes)


def name_losses(totals: dict[str, Tensor], suffixes: list[str]) -> dict[str, Tensor]:
    """Turn {kind: (P,) losses} into {kind + suffix: () loss}."""
    return {
        f"{kind}{suffix}": loss
        for kind, total in totals.items()
        for suffix, loss in zip(suffixes, total.unbind(), strict=True)
    }
