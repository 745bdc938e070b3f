"""One optimizer step: losses, gradients, student, teacher; or nothing at all, if a number in it is not finite.

A step that is left out leaves both networks, the optimizer and the average of the teacher as they were; only the
learning rate moves on, which belongs to the number of the step. All processes leave out the same steps.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LRScheduler

from semidetr_hf.model import SemiDetrForObjectDetection
from semidetr_hf.ssod.objective import StepLosses
from semidetr_hf.ssod.schedule import StageSchedule
from semidetr_hf.ssod.teacher import EMATeacher, whole_tensor
from semidetr_hf.structures import LossWeights, SemiBatch, Stage, UnlabeledBatch
from semidetr_hf.training.metrics import RunningMeans
from semidetr_hf.training.processes import gather_from_all, on_any_process
from semidetr_hf.training.sharding import load_whole

MOST_NAMES = 3  # of losses in a message

Observer = Callable[[int, StepLosses, UnlabeledBatch], None]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step gave.

    Attributes:
        numbers: losses, pseudo-labels, gradient norm; means over the accumulated batches of this process. Tensors are
            () and not yet read: the device may still be computing them.
        trouble: why the step was left out, with images and losses; None if it was made. The same on all processes.
    """

    numbers: dict[str, Tensor | float] = field(default_factory=dict)
    trouble: str | None = None


@dataclass(kw_only=True)
class TrainingStep:
    """Makes optimizer steps.

    Attributes:
        accelerator: of the run.
        objective: the prepared `SemiDetrObjective`.
        optimizer: prepared.
        scheduler: of the learning rate, not prepared: it moves once with every step, whatever the accumulation.
        student: unwrapped, as the teacher follows it.
        teacher: labels the weak views.
        schedule: stages, weights and momentum.
        max_grad_norm: gradients are scaled down to this L2 norm.
        observers: called with step, losses and unlabeled images after every batch with such.
    """

    accelerator: Accelerator
    objective: nn.Module
    optimizer: AcceleratedOptimizer
    scheduler: LRScheduler
    student: SemiDetrForObjectDetection
    teacher: EMATeacher
    schedule: StageSchedule
    max_grad_norm: float
    observers: Sequence[Observer] = ()

    def __call__(self, step: int, batches: Iterable[SemiBatch]) -> StepResult:
        """Make one step.

        Args:
            step: its number, 0-based.
            batches: as many as are accumulated.
        """
        self.objective.train()
        stage = self.schedule.stage_at(step)
        statistics = [buffer.clone() for buffer in self._running_statistics()]
        means, image_ids = RunningMeans(), []
        trouble: str | None = None
        for batch in batches:
            image_ids += _image_ids(batch)
            # Also entered after trouble: it counts the batches until the optimizer's turn.
            with self.accelerator.accumulate(self.objective):
                if trouble is None:
                    trouble = self._add_gradients(step, batch, stage, means)
                if self.accelerator.sync_gradients:
                    trouble = trouble or self._update_student(image_ids, means)
                    with warnings.catch_warnings():
                        # Torch warns when the optimizer has not yet moved, and it has not if the first step is bad.
                        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                        self.scheduler.step()
                    self.optimizer.zero_grad()
        if trouble is not None:
            for buffer, before in zip(self._running_statistics(), statistics, strict=True):
                buffer.copy_(before)
            return StepResult(trouble=trouble)
        if self.accelerator.num_processes > 1:
            self._share_statistics()
        if self.optimizer.step_was_skipped:
            return StepResult(numbers=means.averages())  # there is no new student to follow
        # The copy that the teacher began as was update 0: it is the running average of all students from the first on.
        self.teacher.update(self.student, self.schedule.ema_momentum(self.teacher.num_updates + 1))
        return StepResult(numbers=means.averages())

    def _add_gradients(self, step: int, batch: SemiBatch, stage: Stage, means: RunningMeans) -> str | None:
        """Add the gradients of one batch; return what is not finite, in which case there are none."""
        weights = self.schedule.loss_weights(stage)
        with self.accelerator.autocast():
            losses = self.objective(batch, self.teacher, stage, weights)
        loss = self._weigh(losses, weights)
        named = losses.supervised | losses.pseudo | losses.mixed | losses.consistency
        what = None if torch.isfinite(loss) else f"losses {_name_bad(named)}"
        if on_any_process(self.accelerator, what is not None):
            return self._tell_all(what, _image_ids(batch))
        self.accelerator.backward(loss)
        means.update({"loss": loss.detach(), **named})
        if batch.unlabeled is not None:
            means.update(losses.pseudo_label_numbers())
            for observe in self.observers:
                observe(step, losses, batch.unlabeled)
        return None

    def _update_student(self, image_ids: Sequence[object], means: RunningMeans) -> str | None:
        """Make the optimizer step, unless the gradients are not finite; then return that."""
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.max_grad_norm)
        norm = whole_tensor(torch.as_tensor(norm))  # DeepSpeed, which clips by itself, returns a plain number
        if torch.isfinite(norm):
            means.update({"gradient_norm": norm.to(self.accelerator.device, non_blocking=True)})
        elif self.accelerator.scaler is None:
            return self._tell_all("gradients", image_ids)
        # The loss scaler of fp16 leaves out steps with infinite gradients by itself, and lowers its scale. So far down
        # it is not the scale that makes them infinite.
        self.optimizer.step()
        scaler = self.accelerator.scaler
        if scaler is not None and self.optimizer.step_was_skipped and scaler.get_scale() < 1:
            return self._tell_all("gradients, whatever the loss scale,", image_ids)
        return None

    def _tell_all(self, what: str | None, image_ids: Sequence[object]) -> str:
        """Return what is not finite on all processes together; `what` is None on those that are sound."""
        own = None if what is None else f"{what} on images {list(image_ids)}"
        return "; ".join(found for found in gather_from_all(self.accelerator, own) if found is not None)

    def _weigh(self, losses: StepLosses, weights: LossWeights) -> Tensor:
        """Return the total loss: L_sup + w_u * (L_pseudo + L_mixed) + w_c * sum of the consistency of all layers."""
        total = self.student.weigh(losses.supervised)
        if losses.pseudo:
            total = total + weights.pseudo * self.student.weigh(losses.pseudo | losses.mixed)
        if losses.consistency:
            total = total + weights.consistency * torch.stack(list(losses.consistency.values())).sum()
        return total

    def take_over_teacher(self) -> None:
        """Let both networks go on from the averaged weights, the better ones."""
        load_whole(self.student, self.teacher.detector.state_dict(), self.optimizer)

    def _share_statistics(self) -> None:
        """Give all processes the statistics of the first, in one message; by itself only gradients are averaged."""
        buffers = self._running_statistics()
        if not buffers:
            return
        shared = broadcast(torch.cat([buffer.flatten().double() for buffer in buffers]))
        for buffer, values in zip(buffers, shared.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))

    def _running_statistics(self) -> list[Tensor]:
        """Return the buffers that a forward pass changes; frozen norms are of another class and keep theirs."""
        norms = (module for module in self.objective.modules() if isinstance(module, _BatchNorm))
        return [buffer for norm in norms for buffer in norm.buffers()]


def _name_bad(losses: dict[str, Tensor]) -> str:
    """Return the names of the losses that are not finite, the first few of them."""
    bad = [name for name, value in losses.items() if not torch.isfinite(value)]
    more = f" and {len(bad) - MOST_NAMES} more" if len(bad) > MOST_NAMES else ""
    return f"{', '.join(bad[:MOST_NAMES]) or 'together'}{more}"


def _image_ids(batch: SemiBatch) -> list[object]:
    return [*batch.labeled.image_ids, *(batch.unlabeled.image_ids if batch.unlabeled is not None else [])]
