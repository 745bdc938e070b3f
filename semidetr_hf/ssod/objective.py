"""The losses of one training step, from top to bottom.

One module with one forward, because of data-parallel training: gradients are synchronized only for what runs inside
the forward of the wrapped module, and only once per forward.

Every network encodes every view once; what is needed more than once is decoded again from the same encoding. The
released code runs the teacher's backbone three times and its encoder twice, and the student's encoder twice.

Source: Semi-DETR (arXiv 2307.08095), the training framework.

Legend: B images, Q matching queries, N consistency queries, D width, P decoder layers, G candidates of one image.
"""

import math
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from semidetr_hf.model import SemiDetrForObjectDetection
from semidetr_hf.model.criterion import DetectorPredictions, average_num_boxes
from semidetr_hf.model.decoder_queries import DecoderQueries
from semidetr_hf.model.outputs import EncodedImages
from semidetr_hf.ssod.class_thresholds import ClassThresholds
from semidetr_hf.ssod.label_mining import (
    fit_cost_threshold,
    gather_costs,
    keep_all,
    keep_top_k,
    matched_costs,
    mine_pseudo_labels,
)
from semidetr_hf.ssod.mixing import mix_pseudo_labeled
from semidetr_hf.ssod.one_to_many import OneToManyCriterion
from semidetr_hf.ssod.pseudo_labels import (
    CandidatePair,
    find_confident,
    project_to_view,
    select_candidates,
    to_targets,
)
from semidetr_hf.ssod.query_consistency import (
    ConsistencyQueries,
    QueryProjector,
    build_consistency_queries,
    consistency_loss,
    roi_features,
    with_dummies,
)
from semidetr_hf.ssod.rules import ConsistencyRules, PseudoLabelRules
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import LossWeights, PseudoLabels, SemiBatch, Stage, Target, UnlabeledBatch, View


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """What one step returns; pseudo-labels are per image and, where nothing else is said, in the strong view.

    Attributes:
        supervised: unweighted losses on labeled images, names beginning with "sup_".
        pseudo: unweighted losses on unlabeled images, names beginning with "pseudo_"; empty without unlabeled images.
        mixed: the same of images mixed of unlabeled ones, names beginning with "mixed_"; empty without mixing.
        consistency: unweighted losses, "consistency" of the last decoder layer and "consistency_{i}"; empty in steps
            without it.
        candidates: what stood out among the teacher's detections.
        confident: the candidates that were used as targets.
        confident_weak: the same in the weak view.
        score_thresholds: (C,) from which score on they were; None where it is that of the settings.
        mined: the candidates of which consistency queries were made; empty in steps without.
        costs: matching cost of every candidate, per image (G,); empty unless candidates are mined by cost.
        cost_threshold: candidates up to this cost were mined; None unless candidates are mined by cost.
    """

    supervised: dict[str, Tensor] = field(default_factory=dict)
    pseudo: dict[str, Tensor] = field(default_factory=dict)
    mixed: dict[str, Tensor] = field(default_factory=dict)
    consistency: dict[str, Tensor] = field(default_factory=dict)
    candidates: list[PseudoLabels] = field(default_factory=list)
    confident: list[PseudoLabels] = field(default_factory=list)
    confident_weak: list[PseudoLabels] = field(default_factory=list)
    score_thresholds: Tensor | None = None
    mined: list[PseudoLabels] = field(default_factory=list)
    costs: list[Tensor] = field(default_factory=list)
    cost_threshold: float | None = None

    def pseudo_label_numbers(self) -> dict[str, float]:
        """Return for the log how many pseudo-labels an image has on average, and the thresholds they passed."""
        num_images = max(len(self.confident), 1)
        numbers = {"pseudo_labels": sum(map(len, self.confident)) / num_images}
        if self.mined:
            numbers["mined"] = sum(map(len, self.mined)) / num_images
        if self.score_thresholds is not None:
            numbers |= {
                "score_threshold": float(self.score_thresholds.mean()),
                "score_threshold_lowest": float(self.score_thresholds.min()),
                "score_threshold_highest": float(self.score_thresholds.max()),
            }
        if self.cost_threshold is not None and math.isfinite(self.cost_threshold):
            numbers["cost_threshold"] = self.cost_threshold
        return numbers


@dataclass(frozen=True)
class Mining:
    """Which candidates become consistency queries: per image a (G,) bool mask, and where it came from."""

    keep: list[Tensor]
    costs: list[Tensor] = field(default_factory=list)
    threshold: float | None = None


class SemiDetrObjective(nn.Module):
    """The losses of a step; owns the student and the projector, not the teacher.

    Args:
        student: the network that is trained.
        pseudo_labels: which detections of the teacher become targets.
        one_to_many: criterion of the first stage; that of the second is the student's own.
        class_thresholds: thresholds of confident labels; None for the fixed one of `pseudo_labels`.
        projector: makes consistency queries of features; None if no step has a consistency loss.
        consistency: how consistency queries are made.
    """

    def __init__(
        self,
        student: SemiDetrForObjectDetection,
        pseudo_labels: PseudoLabelRules,
        *,
        one_to_many: OneToManyCriterion,
        class_thresholds: ClassThresholds | None = None,
        projector: QueryProjector | None = None,
        consistency: ConsistencyRules | None = None,
    ):
        super().__init__()
        self.student = student
        self.class_thresholds = class_thresholds
        self.projector = projector
        self.one_to_many = one_to_many
        self.pseudo_labels = pseudo_labels
        self.consistency = consistency or ConsistencyRules()

    def forward(self, batch: SemiBatch, teacher: EMATeacher, stage: Stage, weights: LossWeights) -> StepLosses:
        """Return the losses of one batch; they are NaN where predictions are.

        Args:
            batch: without unlabeled images only the supervised losses are computed.
            teacher: labels the weak views.
            stage: how predictions are given to boxes.
            weights: what is 0 is not computed.
        """
        labeled, unlabeled = batch.labeled, batch.unlabeled
        labeled_features = self.student.encode(labeled.view.pixel_values, labeled.view.pixel_mask)
        supervised = _named("sup", self.supervised_losses(labeled_features, labeled.targets, stage))
        if unlabeled is None:
            return StepLosses(supervised=supervised)
        return replace(self.unlabeled_losses(unlabeled, teacher, stage, weights), supervised=supervised)

    def unlabeled_losses(
        self, unlabeled: UnlabeledBatch, teacher: EMATeacher, stage: Stage, weights: LossWeights
    ) -> StepLosses:
        """Return the losses on unlabeled images; arguments as in `forward`."""
        weak, strong = unlabeled.weak, unlabeled.strong
        teacher_features = teacher.encode(weak)
        candidates, thresholds = self.find_candidates(teacher, teacher_features, unlabeled)
        student_features = self.student.encode(strong.pixel_values, strong.pixel_mask)
        is_confident = find_confident(candidates, thresholds)
        targeted = [pair[keep] for pair, keep in zip(candidates, is_confident, strict=True)]
        confident = [pair.strong for pair in targeted]
        mined: list[CandidatePair] = []
        mining, queries = None, None
        if weights.consistency > 0:
            mining = self.mine(student_features, candidates, is_confident, strong)
            mined = [pair[keep] for pair, keep in zip(candidates, mining.keep, strict=True)]
            queries = self.consistency_queries(mined, unlabeled, student_features, teacher_features)

        targets = to_targets(confident, strong)
        predictions, student_states = self.decode(
            student_features,
            targets,
            denoise=weights.denoises_pseudo_labels,
            extra_queries=None if queries is None else queries.strong,
        )
        pseudo = self.compare(predictions, targets, stage)
        losses = StepLosses(
            pseudo=_named("pseudo", pseudo),
            mixed=_named("mixed", self.mixed_losses(confident, strong, stage, weights)),
            candidates=[pair.strong for pair in candidates],
            confident=confident,
            confident_weak=[pair.weak for pair in targeted],
            score_thresholds=None if self.class_thresholds is None else thresholds,
        )
        if queries is None or mining is None:
            return losses
        return replace(
            losses,
            consistency=self.consistency_losses(student_states, teacher, teacher_features, queries),
            mined=[pair.strong for pair in mined],
            costs=mining.costs,
            cost_threshold=mining.threshold,
        )

    def supervised_losses(self, encoded: EncodedImages, targets: list[Target], stage: Stage) -> dict[str, Tensor]:
        """Decode labeled images, with denoising queries in both stages, and compare with their boxes."""
        predictions, _ = self.decode(encoded, targets, denoise=True)
        return self.compare(predictions, targets, stage)

    def decode(
        self,
        encoded: EncodedImages,
        targets: list[Target],
        *,
        denoise: bool,
        extra_queries: DecoderQueries | None = None,
    ) -> tuple[DetectorPredictions, Tensor]:
        """Decode [extra | denoising | matching] queries.

        Args:
            encoded: from the student's `encode`.
            targets: what denoising queries are made of.
            denoise: whether there are any.
            extra_queries: N queries in front, or None.

        Returns:
            The predictions, and the states of the extra queries in every layer, (P, B, N, D).
        """
        denoising = self.student.denoising_queries(_labels(targets)) if denoise else None
        predictions, decoded = self.student.decode(encoded, denoising, extra_queries=extra_queries)
        num_extra = 0 if extra_queries is None else len(extra_queries)
        return predictions, decoded["intermediate_hidden_states"][:, :, :num_extra].transpose(0, 1)

    def compare(self, predictions: DetectorPredictions, targets: list[Target], stage: Stage) -> dict[str, Tensor]:
        """Return the detection losses of a stage; names as in `SetCriterion`, the same in both stages."""
        labels = _labels(targets)
        criterion = self.one_to_many if stage is Stage.ONE_TO_MANY else self.student.criterion
        return criterion(predictions, labels, average_num_boxes(labels, predictions.logits.device))

    def find_candidates(
        self, teacher: EMATeacher, teacher_features: EncodedImages, unlabeled: UnlabeledBatch
    ) -> tuple[list[CandidatePair], Tensor]:
        """Return what stands out among the teacher's detections, per image and in both views.

        Beside it the (C,) scores from which on a candidate of each class is confident.
        """
        rules = self.pseudo_labels
        detections = teacher.detect(
            teacher_features,
            unlabeled.weak,
            iou_threshold=rules.nms_iou,
            min_score=rules.min_score,
            max_detections=rules.max_detections,
        )
        if self.class_thresholds is None:
            thresholds = torch.full((self.student.config.num_labels,), rules.score_threshold)
        else:
            thresholds = self.class_thresholds(detections)
        always_keep = thresholds if rules.confident_source == "detections" else None
        candidates = [
            select_candidates(found, mean_std_filter=rules.mean_std_filter, always_keep=always_keep)
            for found in detections
        ]
        pairs = project_to_view(candidates, unlabeled.weak, unlabeled.strong, min_box_size=rules.min_box_size)
        return pairs, thresholds

    def mixed_losses(
        self, confident: list[PseudoLabels], strong: View, stage: Stage, weights: LossWeights
    ) -> dict[str, Tensor]:
        """Return the losses on images mixed of the strong views; empty if there are none."""
        mixed = mix_pseudo_labeled(strong, confident, self.pseudo_labels.mixing)
        if mixed is None:
            return {}
        encoded = self.student.encode(mixed.pixel_values, mixed.pixel_mask)
        predictions, _ = self.decode(encoded, mixed.targets, denoise=weights.denoises_pseudo_labels)
        return self.compare(predictions, mixed.targets, stage)

    @torch.no_grad()
    def mine(
        self,
        student_features: EncodedImages,
        candidates: list[CandidatePair],
        is_confident: list[Tensor],
        strong: View,
    ) -> Mining:
        """Choose the candidates of which consistency queries are made; the confident ones are always among them.

        By cost, the matching queries are decoded once more, without gradient: they cannot be taken from the pass that
        trains, which already needs the choice.
        """
        rules, labels = self.consistency, [pair.strong for pair in candidates]
        if rules.candidate_filter == "none":
            return Mining(is_confident)
        if rules.candidate_filter != "cost":
            chosen = keep_top_k(labels, rules.top_k) if rules.candidate_filter == "top_k" else keep_all(labels)
            return Mining([keep | sure for keep, sure in zip(chosen, is_confident, strict=True)])
        device = self.student.device.type
        # Autocast keeps the low-precision copies of weights. Where those made here have no gradient (torch before
        # about 2.10), the pass that trains would use them again and leave its weights untrained.
        autocast = torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        )
        with autocast:
            predictions, _ = self.student.decode(student_features)
        costs = matched_costs(
            predictions.logits[-1],
            predictions.boxes[-1],
            to_targets(labels, strong),
            self.student.criterion.matcher,
        )
        threshold = fit_cost_threshold(gather_costs(costs), rule=rules.cost_threshold)
        return Mining(mine_pseudo_labels(costs, is_confident, threshold), costs, threshold)

    def consistency_queries(
        self,
        mined: list[CandidatePair],
        unlabeled: UnlabeledBatch,
        student_features: EncodedImages,
        teacher_features: EncodedImages,
    ) -> ConsistencyQueries:
        """Return queries about the mined objects for both networks.

        Raises:
            ValueError: if the objective has no projector.
        """
        if self.projector is None:
            raise ValueError("the consistency loss has a weight, but the objective was made without a projector")
        rules, weak, strong = self.consistency, unlabeled.weak, unlabeled.strong
        boxes_strong = [pair.strong.boxes_xyxy for pair in mined]
        boxes_weak = [pair.weak.boxes_xyxy for pair in mined]
        is_real = None
        if rules.rows == "all":
            boxes_strong, boxes_weak, is_real = with_dummies(
                boxes_strong, boxes_weak, strong.image_sizes, weak.image_sizes
            )
        from_weak = self.projector(roi_features(teacher_features.pyramid, boxes_weak, _padded_size(weak)))
        from_strong = from_weak
        if rules.source == "exchanged":
            # The teacher reads it, and nothing is trained through the teacher.
            with torch.no_grad():
                from_strong = self.projector(
                    roi_features(student_features.pyramid, boxes_strong, _padded_size(strong))
                )
        return build_consistency_queries(
            content_for_strong=from_weak,
            content_for_weak=from_strong,
            boxes_strong=boxes_strong,
            boxes_weak=boxes_weak,
            strong_sizes=strong.image_sizes,
            weak_sizes=weak.image_sizes,
            eps=self.student.config.inverse_sigmoid_eps,
            copies=rules.copies,
            is_real=is_real,
        )

    def consistency_losses(
        self,
        student_states: Tensor,
        teacher: EMATeacher,
        teacher_features: EncodedImages,
        queries: ConsistencyQueries,
    ) -> dict[str, Tensor]:
        """Return the loss of every decoder layer by name; `student_states` are (P, B, N, D)."""
        teacher_states = teacher.answer(teacher_features, queries.weak)
        rules = self.consistency
        losses = consistency_loss(
            student_states, teacher_states, queries, rows=rules.rows, unit_length=rules.unit_length
        ).unbind()
        names = [f"consistency_{i}" for i in range(len(losses) - 1)] + ["consistency"]
        return dict(zip(names, losses, strict=True))


def _labels(targets: list[Target]) -> list[dict[str, Tensor]]:
    """Return targets as the detector takes them: it knows nothing of this package's types."""
    return cast("list[dict[str, Tensor]]", targets)


def _padded_size(view: View) -> tuple[int, int]:
    return view.pixel_values.shape[-2], view.pixel_values.shape[-1]


def _named(prefix: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}_{name}": loss for name, loss in losses.items()}
