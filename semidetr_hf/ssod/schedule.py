"""What depends on how far training has come: stage, weights of the losses, and how fast the teacher follows.

Pure functions of the step; nothing here is stored on a module.

Source: Semi-DETR (arXiv 2307.08095), stage-wise hybrid matching: one-to-many first, one-to-one from a step on, on
labeled and unlabeled images alike. Where the released code differs from what the paper is reported to do
(consistency in the first stage only, its weight multiplied by that of the unlabeled images), both are settings. The
warm-up of the momentum is the released code's. It has no burn-in; that is what Unbiased Teacher (arXiv 2102.09480)
adds, and off by default.
"""

from dataclasses import dataclass

from semidetr_hf.structures import LossWeights, Stage


@dataclass(frozen=True, kw_only=True)
class StageSchedule:
    """The course of one training run.

    Attributes:
        burn_in_steps: optimizer steps at the start that see labeled images only.
        one_to_many_steps: steps of the first stage, burn-in included; 0 leaves it out.
        unsupervised_weight: weight of the losses on unlabeled images.
        consistency_weight: weight of the consistency loss of every decoder layer.
        scales_consistency: multiply it by `unsupervised_weight` as well (released code).
        consistency_in_one_to_one: go on with the consistency loss in the second stage (paper).
        denoises_in_one_to_many: also denoise pseudo-labels in the first stage (neither paper nor released code).
        max_ema_momentum: the teacher keeps at most this share of itself in an update.
        ema_warmup: larger values let the teacher follow the student longer.
    """

    burn_in_steps: int = 0
    one_to_many_steps: int = 0
    unsupervised_weight: float = 4.0
    consistency_weight: float = 0.0
    scales_consistency: bool = False
    consistency_in_one_to_one: bool = True
    denoises_in_one_to_many: bool = False
    max_ema_momentum: float = 0.999
    ema_warmup: int = 0

    def stage_at(self, step: int) -> Stage:
        """Return the stage of optimizer step `step` (0-based)."""
        return Stage.ONE_TO_MANY if step < self.one_to_many_steps else Stage.ONE_TO_ONE

    def loss_weights(self, stage: Stage) -> LossWeights:
        """Return what the losses on unlabeled images count in a stage."""
        first = stage is Stage.ONE_TO_MANY
        consistency = self.consistency_weight if first or self.consistency_in_one_to_one else 0.0
        return LossWeights(
            pseudo=self.unsupervised_weight,
            consistency=consistency * (self.unsupervised_weight if self.scales_consistency else 1.0),
            denoises_pseudo_labels=self.denoises_in_one_to_many or not first,
        )

    def uses_unlabeled(self, step: int) -> bool:
        """Return whether optimizer step `step` (0-based) sees unlabeled images."""
        return step >= self.burn_in_steps

    def ends_burn_in(self, step: int) -> bool:
        """Return whether `step` is the last of a burn-in, after which both networks start from the same weights."""
        return step + 1 == self.burn_in_steps

    def ema_momentum(self, num_updates: int) -> float:
        """Return the share that the teacher keeps of itself in update `num_updates` (0-based).

        min(max, 1 - (1 + W) / (t + 1 + W)): 0 at first (a copy), then the running average, then the maximum. With
        W = 0 and a maximum of 0.999: 0, 1/2, 2/3, ..., 0.999 from update 999 on.
        """
        return min(self.max_ema_momentum, 1 - (1 + self.ema_warmup) / (num_updates + 1 + self.ema_warmup))
