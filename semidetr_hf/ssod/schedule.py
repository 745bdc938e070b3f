"""What depends on how far training has come: whether unlabeled images count yet, and how fast the teacher follows.

Pure functions of the step; nothing here is stored on a module.

Source: Semi-DETR (arXiv 2307.08095) (EMA 0.999); the warm-up of the momentum is the released code's. The
released code has no burn-in; it is what Unbiased Teacher (arXiv 2102.09480) adds, and off by default.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StageSchedule:
    """The course of one training run.

    Attributes:
        burn_in_steps: optimizer steps at the start that see labeled images only.
        max_ema_momentum: the teacher keeps at most this share of itself in an update.
        ema_warmup: larger values let the teacher follow the student longer.
    """

    burn_in_steps: int = 0
    max_ema_momentum: float = 0.999
    ema_warmup: int = 0

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
