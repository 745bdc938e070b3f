"""When a run may end before its last step: its networks have not become better for several evaluations."""

from dataclasses import dataclass

from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.networks import BestNetwork


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Decides from steps alone, so that a resumed run ends where an undisturbed one does.

    Attributes:
        patience: evaluations to wait for a better AP of any network; None for a run that never ends early.
        begins: steps before the last stage, of which no evaluation counts: a new stage often brings an improvement.
        eval_every: steps between two evaluations.
    """

    patience: int | None
    begins: int
    eval_every: int

    def has_stalled(self, step: int, best: BestNetwork | None) -> bool:
        """Return whether the networks have not become better for so long.

        Args:
            step: optimizer steps made.
            best: of all evaluations up to now; None before the first one.
        """
        if self.patience is None or best is None:
            return False
        return step // self.eval_every - max(best.step, self.begins) // self.eval_every >= self.patience


def build_early_stopping(config: TrainingConfig, *, has_unlabeled: bool) -> EarlyStopping:
    """Return when a run ends early; the last drop of the learning rate begins a stage, too.

    Args:
        config: of the run.
        has_unlabeled: whether it sees unlabeled images; otherwise there is no burn-in.
    """
    schedule = config.schedule
    changes = [schedule.burn_in_steps if has_unlabeled else 0, schedule.first_stage_steps]
    changes += config.optimizer.lr_drop_steps
    return EarlyStopping(
        patience=config.recipe.early_stopping_patience,
        begins=max((step for step in changes if step < schedule.num_steps), default=0),
        eval_every=config.run.eval_every,
    )
