"""The training loop: supervised burn-in, then student and teacher, on any number of processes by Accelerate.

A run without unlabeled images is plain supervised training with an averaged copy of the network beside it, and serves
as the baseline of a semi-supervised one. A run that was interrupted goes on from its newest checkpoint as if nothing
had happened.
"""

import logging
from pathlib import Path

from accelerate.utils import set_seed
from torch import Tensor
from tqdm.auto import tqdm

from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.images import UnreadableImageError
from semidetr_hf.data.loading import LabeledDataset, UnlabeledDataset
from semidetr_hf.data.sources import Source
from semidetr_hf.data.validation import check_sources
from semidetr_hf.model import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.ssod.class_thresholds import smoothed_rates
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import SemiBatch, Stage
from semidetr_hf.training import resuming
from semidetr_hf.training.accelerator import build_accelerator
from semidetr_hf.training.batches import TrainingBatches
from semidetr_hf.training.checkpoints import Checkpoint, RunCheckpoints, restore, roll_back
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.early_stopping import build_early_stopping
from semidetr_hf.training.evaluation import DetectionMetrics
from semidetr_hf.training.health import build_health
from semidetr_hf.training.hub_push import HubPush
from semidetr_hf.training.instruments import build_instruments
from semidetr_hf.training.interruption import StopSignals
from semidetr_hf.training.networks import BestNetwork, RunNetworks
from semidetr_hf.training.optimizer import build_optimizer, build_scheduler
from semidetr_hf.training.precision import teacher_dtype
from semidetr_hf.training.processes import fingerprint, from_main_process, require_same
from semidetr_hf.training.records import build_records
from semidetr_hf.training.resources import ResourceMeter
from semidetr_hf.training.result import TrainingResult
from semidetr_hf.training.setup import build_augment, build_objective, build_schedule
from semidetr_hf.training.step import TrainingStep

logger = logging.getLogger(__name__)


class SemiDetrTrainer:
    """Train a detector from labeled and, if there are any, unlabeled images.

    The output folder receives `config.yaml`, `log.jsonl` (what depends on settings and seed alone), `resources.jsonl`
    (what depends on the machine), `student/` and `teacher/` (at every evaluation), `best/` (the better network at the
    best evaluation), and `checkpoints/`, from which the run can go on. Each of the three networks loads with
    `AutoModelForObjectDetection.from_pretrained`.

    Args:
        config: the run.
        model: the student, already initialised.
        image_processor: its processor; views are normalised with its mean and deviation, evaluation goes through it.
        labeled: images with boxes.
        unlabeled: images whose boxes, if any, are not looked at; None for supervised training.
        val: images to evaluate on, None to skip evaluation.
        augment: how views are made; by default from `config.data`.
        check_data: whether to look at the images first, and warn of what is wrong; False if it was done already.

    Raises:
        ValueError, FileNotFoundError: if the data makes the run pointless, see `check_sources`.
        ValueError: if a tracker is unknown or not installed; names it. If processes were started with different
            settings or data. If `resume` asks for a checkpoint of another run, or one that cannot be read.
        FileExistsError: if the output folder holds an earlier run that is neither resumed nor to be overwritten.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: SemiDetrForObjectDetection,
        image_processor: SemiDetrImageProcessor,
        *,
        labeled: Source,
        unlabeled: Source | None = None,
        val: CocoSource | None = None,
        augment: AugmentConfig | None = None,
        check_data: bool = True,
    ):
        self.config = config
        self.image_processor = image_processor
        self.augment = augment or build_augment(config)
        self.output_dir = Path(config.run.output_dir)
        self.accelerator = build_accelerator(config)
        self.main = self.accelerator.is_main_process
        unlabeled = unlabeled if config.schedule.unsupervised_weight > 0 else None
        for warning in check_sources(labeled, unlabeled, val, seed=config.run.seed) if check_data else []:
            self._warn(warning)
        teacher_format = teacher_dtype(config.run, self.accelerator.device)
        self.settings = resuming.settings_of(config, teacher_format, labeled=labeled, unlabeled=unlabeled, val=val)
        require_same(self.accelerator, {**self.settings, "the weights of the model": fingerprint(model)})
        self.checkpoints = RunCheckpoints(self.output_dir / "checkpoints", config.run.keep_checkpoints)
        checkpoint = resuming.prepare_output_folder(config.run, self.checkpoints, self.accelerator)
        if checkpoint is not None:
            resuming.require_same_run(checkpoint, self.settings, num_steps=config.schedule.num_steps)
            resuming.set_later_aside(self.checkpoints, checkpoint.step, self.accelerator)
        self.step = 0 if checkpoint is None else checkpoint.step
        self.stopped_by: str | None = None
        self._saved_step: int | None = None
        self._build(model, labeled, unlabeled, val)
        if checkpoint is not None:
            self._restore(checkpoint)

    def _build(
        self, model: SemiDetrForObjectDetection, labeled: Source, unlabeled: Source | None, val: CocoSource | None
    ) -> None:
        """Build what the steps need: networks, optimizer, batches."""
        config = self.config
        set_seed(config.run.seed)
        self.schedule = build_schedule(config)
        self.student = model.to(self.accelerator.device)
        self.teacher = EMATeacher(self.student, teacher_dtype(config.run, self.accelerator.device))
        rates = smoothed_rates(labeled.class_counts, len(labeled))
        objective = build_objective(config, self.student, has_unlabeled=unlabeled is not None, boxes_per_image=rates)
        optimizer = build_optimizer(objective, config.optimizer)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.scheduler = build_scheduler(optimizer, config.optimizer, config.schedule.num_steps)
        self.accelerator.register_for_checkpointing(self.scheduler)
        views = (self.augment, self.image_processor.image_mean, self.image_processor.image_std)
        self.batches = TrainingBatches(
            config,
            self.schedule,
            self.accelerator,
            labeled=LabeledDataset(labeled, *views),
            unlabeled=None if unlabeled is None else UnlabeledDataset(unlabeled, *views),
            start=self.step,
        )
        self.instruments = None
        if config.run.instruments and unlabeled is not None:
            folder = self.output_dir if self.main else None
            self.instruments = build_instruments(config, unlabeled, folder, start=self.step)
        self.records = build_records(config, self.accelerator, self.student, self.image_processor)
        self.make_step = TrainingStep(
            accelerator=self.accelerator,
            objective=self.objective,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            student=self.student,
            teacher=self.teacher,
            schedule=self.schedule,
            max_grad_norm=config.optimizer.max_grad_norm,
            observers=[part.observe for part in (self.instruments, self.records.pictures) if part is not None],
        )
        self.networks = RunNetworks(
            accelerator=self.accelerator,
            networks={"student": self.student, "teacher": self.teacher.detector},
            evaluated=config.run.evaluated_networks,
            image_processor=self.image_processor,
            nms_iou=config.pseudo_labels.nms_iou,
            val=val,
            batch_size=config.data.labeled_batch_size,
            folder=self.output_dir,
        )
        if self.accelerator.num_processes > 1:
            set_seed(config.run.seed, device_specific=True)  # each process draws noise of its own
        self.hub = HubPush(config, self.accelerator, labeled=labeled, unlabeled=unlabeled, val=val)
        self.health = build_health(config)
        self.stopping = build_early_stopping(config, has_unlabeled=unlabeled is not None)

    def train(self, *, another_follows: bool = False) -> TrainingResult:
        """Run the steps that are left, evaluate, and write networks and checkpoints.

        SIGTERM and Ctrl-C end the run after the present step, with a checkpoint.

        Args:
            another_follows: keep the connection of the processes for another run of theirs.

        Raises:
            FloatingPointError: if too many steps in a row are not finite; names losses and images. A checkpoint is
                written before.
            OSError: if images cannot be read any more, or the output folder cannot be written.
        """
        run, num_steps = self.config.run, self.config.schedule.num_steps
        self.hub.begin()
        self.records.begin(self.config, self.step)
        bar = tqdm(total=num_steps, initial=self.step, desc=self._phase(), disable=not self.main, dynamic_ncols=True)
        claim, told = resuming.claimed(self.output_dir, self.accelerator), self.batches.telling_dead_workers()
        with claim, StopSignals() as signals, bar, told:
            while self.step < num_steps and self.stopped_by is None and not self._has_stalled:
                failure = None
                try:
                    self.records.add(self.train_step())
                except FloatingPointError as error:
                    failure = error  # ends the run when everything that is due has been written
                self.step += 1
                bar.update()
                bar.set_description(self._phase(), refresh=False)
                last, best = self.step == num_steps, self.networks.best

                # Once in a while: log.
                if self.step % run.log_every == 0 or last:
                    bar.set_postfix(self._log_means(last))

                # Once in a while: write both networks, evaluate them and keep the better one.
                if self.step % run.eval_every == 0 or last:
                    self.networks.write(self._last_stage)
                    self._log_evaluation()

                # Once in a while: write a checkpoint, from which the run can go on.
                last = last or self._has_stalled
                self.stopped_by = None if last else signals.on_any_process(self.accelerator)
                due = self.step % (run.save_every or min(run.eval_every, 1000)) == 0 or self.networks.best is not best
                if due or last or self.stopped_by is not None or failure is not None:
                    self.save_checkpoint()
                if failure is not None:
                    raise failure
        return self._end(another_follows)

    def train_step(self) -> dict[str, Tensor | float]:
        """Make one optimizer step, or leave it out if it is not finite, and return its numbers, see `StepResult`.

        Raises:
            FloatingPointError: if too many in a row were left out.
        """
        repeats = self.config.run.gradient_accumulation_steps
        # All of them first: images that cannot be read must not end the run, and save it, within a step.
        result = self.make_step(self.step, [self._next_batch() for _ in range(repeats)])
        if self.batches.unlabeled is not None and self.schedule.ends_burn_in(self.step):
            self.make_step.take_over_teacher()
        if result.trouble is None:
            self.health.steps.made()
        else:
            self._warn(self.health.steps.skipped(self.step, result.trouble))
        return result.numbers

    def _next_batch(self) -> SemiBatch:
        started = self.records.meter.seconds
        try:
            return self.batches.next(with_unlabeled=self._uses_unlabeled)
        except (UnreadableImageError, ChildProcessError):
            if self.accelerator.num_processes == 1:  # the others would wait for this one in vain
                self.save_checkpoint()
            raise
        finally:
            self.records.meter.waited += self.records.meter.seconds - started

    def evaluate(self) -> dict[str, DetectionMetrics]:
        """Return the metrics of the networks on the validation images; save the best one if it is the best so far.

        Raises:
            ValueError: if the trainer has no validation images.
        """
        return self.networks.evaluate(self.step, self._last_stage)

    def save_checkpoint(self) -> None:
        """Write everything from which the run can go on, unless this step is written already.

        Raises:
            OSError: if it cannot be written; the checkpoints before it stay.
        """
        if self.step == self._saved_step:
            return
        best = self.networks.best
        self.checkpoints.save(
            self.accelerator,
            self.teacher,
            state={
                "step": self.step,
                "num_steps": self.config.schedule.num_steps,
                "seconds": round(self.records.meter.seconds, 3),
                "best": None if best is None else best.state(),
                "metrics": {name: metrics.to_dict() for name, metrics in self.networks.metrics.items()},
                "health": self.health.state(),
                "settings": self.settings,
            },
            own_state={
                "means": self.records.means.state(),
                "unreadable": self.batches.unreadable(),
                "instruments": None if self.instruments is None else self.instruments.state(),
            },
            best_step=None if best is None else best.step,
        )
        self._saved_step = self.step

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        own = restore(checkpoint, self.accelerator, self.teacher)
        if state["best"] is not None:
            best = BestNetwork.restored(state["best"])
            is_kept = self.checkpoints.of_step(best.step) is not None
            self.networks.take_back_best(best, self.step, self._last_stage, is_kept=is_kept)
        self.networks.metrics = {name: DetectionMetrics.from_dict(m) for name, m in state["metrics"].items()}
        self.health.restore(state["health"])
        self.records.means.restore(own["means"])
        self.batches.mark_unreadable(own["unreadable"])
        if self.instruments is not None:
            self.instruments.restore(own["instruments"])
        self.records.meter = ResourceMeter(self.accelerator.device, seconds_before=state["seconds"], step=self.step)
        self._saved_step = self.step

    def _end(self, another_follows: bool) -> TrainingResult:
        num_unreadable = self.batches.num_unreadable()
        if self.step == self.config.schedule.num_steps:
            self.batches.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if self.stopped_by is None:
            self.hub.end(is_last=not another_follows)
        if not another_follows:
            self.accelerator.state.destroy_process_group()
        metrics = self.networks.metrics
        return TrainingResult(
            student=metrics.get("student"),
            teacher=metrics.get("teacher"),
            best=self.networks.best,
            num_unreadable=num_unreadable,
            seconds=self.records.meter.seconds,
            step=self.step,
            stopped_by=self.stopped_by,
            stopped_early=self.stopped_by is None and self.step < self.config.schedule.num_steps,
        )

    def _log_means(self, last: bool) -> dict[str, str]:
        """Write the means since the last time, and what they say about the run; return what the progress bar shows."""
        row = self.records.take_means()
        pseudo_labels = row.get("pseudo_labels")
        shown = {"loss": f"{row.get('loss', 0):.2f}", "pseudo_labels": f"{pseudo_labels or 0:.1f}"}
        row["learning_rate"] = self.scheduler.get_last_lr()[-1]
        if self.health.steps.total:
            row["skipped_steps"] = self.health.steps.total
        if last:
            row["unreadable_images"] = self.batches.num_unreadable()
        if self.instruments is not None:
            row |= self.instruments.compute()
        self.records.write(self.step, row)
        measured = self.records.measure(self.step)
        interval = (self.step - 1) % self.config.run.log_every + 1
        self._warn(self.health.advice.on_pseudo_labels(pseudo_labels, interval))
        self._warn(self.health.advice.on_waiting(measured["waiting"], self.step))
        if pseudo_labels is not None:
            images = interval * self.batches.num_unlabeled_per_step
            self._heal(self.health.teacher.see_pseudo_labels(pseudo_labels, images, self._last_stage))
        return shown

    def _log_evaluation(self) -> None:
        """Evaluate, if there are images for it, write the metrics, and what they say about the teacher."""
        if self.networks.val is None:
            return
        metrics = self.evaluate()
        row = {f"{name}/{key}": value for name, m in metrics.items() for key, value in m.to_dict().items()}
        row |= self.networks.evaluate_other_way(self._last_stage) if self.config.run.instruments else {}
        self.records.write_evaluation(self.step, row)
        self.hub.after_evaluation(self.networks.best)
        if "teacher" in metrics and self._uses_unlabeled:
            self._warn(self.health.advice.on_teacher(metrics["teacher"].ap))
            self._heal(self.health.teacher.see_ap(metrics["teacher"].ap, self._last_stage))

    def _heal(self, collapse: str | None) -> None:
        """Do what is configured about a teacher that has collapsed; nothing if None."""
        if collapse is None:
            return
        # After the last step there is nothing to go on with, and the networks are written.
        action = "warn" if self.step == self.config.schedule.num_steps else self.config.health.on_collapse
        checkpoint = None
        if action == "roll_back" and self.health.rollbacks == 0 and (best := self.networks.best) is not None:
            # The best evaluation may be this very one, of the student, and not be written yet.
            found = self.checkpoints.of_step(best.step) or self.checkpoints.newest()
            checkpoint = from_main_process(self.accelerator, found)
        if checkpoint is not None:
            roll_back(checkpoint, self.accelerator, self.teacher, optimizer=self.optimizer, scheduler=self.scheduler)
            self.health.rollbacks += 1
            done = f"the networks are those of step {checkpoint.step} again"
        elif action == "warn":
            done = "nothing is done about it"
        else:
            self.health.supervised_only = True
            done = "the run goes on without unlabeled images"
        self.health.teacher.forget()
        self._warn(f"step {self.step}: {collapse}; {done}")
        self.records.write(self.step, {"event": f"{collapse}; {done}"})

    def _warn(self, text: str | None) -> None:
        if text is not None and self.main:
            logger.warning(text)

    @property
    def _uses_unlabeled(self) -> bool:
        """Whether the next step sees unlabeled images."""
        has_unlabeled = self.batches.unlabeled is not None and not self.health.supervised_only
        return has_unlabeled and self.schedule.uses_unlabeled(self.step)

    @property
    def _has_stalled(self) -> bool:
        return self.stopping.has_stalled(self.step, self.networks.best)

    @property
    def _last_stage(self) -> Stage:
        """Stage of the last step."""
        return self.schedule.stage_at(max(self.step - 1, 0))

    def _phase(self) -> str:
        if self.batches.unlabeled is None or self.health.supervised_only:
            return "supervised"
        return self.schedule.stage_at(self.step).value.replace("_", "-") if self._uses_unlabeled else "burn-in"
