"""The training loop: supervised burn-in, then student and teacher, on any number of processes by Accelerate.

A run without unlabeled images is plain supervised training with an averaged copy of the network beside it, and serves
as the baseline of a semi-supervised one.
"""

import copy
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast, set_seed
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.loading import LabeledDataset, PassSampler, UnlabeledDataset, view_loader
from semidetr_hf.data.sources import Source
from semidetr_hf.data.validation import check_sources
from semidetr_hf.model import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.ssod.objective import StepLosses
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import LabeledBatch, LossWeights, SemiBatch, Stage, UnlabeledBatch
from semidetr_hf.training.checkpoints import save_detector
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.evaluation import DetectionMetrics, evaluate
from semidetr_hf.training.instruments import Instruments
from semidetr_hf.training.metrics import JsonlLog, RunningMeans, flatten
from semidetr_hf.training.optimizer import build_optimizer, build_scheduler
from semidetr_hf.training.pseudo_label_quality import hidden_labels
from semidetr_hf.training.setup import build_objective, build_schedule

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a run ends with.

    Attributes:
        student: metrics of the student after the last step, None without validation images.
        teacher: the same of the teacher.
        best: metrics of the checkpoint in `best/`, None without validation images.
        best_network: "student" or "teacher".
        best_step: after how many optimizer steps it was taken.
        num_unreadable: training images that were drawn but could not be read; others were taken instead.
        seconds: wall-clock time of the run.
    """

    student: DetectionMetrics | None
    teacher: DetectionMetrics | None
    best: DetectionMetrics | None
    best_network: str | None
    best_step: int | None
    num_unreadable: int
    seconds: float


class SemiDetrTrainer:
    """Train a detector from labeled and, if there are any, unlabeled images.

    The output folder receives `config.yaml`, `log.jsonl`, `student/` and `teacher/` (after the last step) and `best/`
    (the better network at the best evaluation); each of the three loads with
    `AutoModelForObjectDetection.from_pretrained`.

    Args:
        config: the run.
        model: the student, already initialised.
        image_processor: its processor; views are normalised with its mean and deviation, evaluation goes through it.
        labeled: images with boxes.
        unlabeled: images whose boxes, if any, are not looked at; None for supervised training.
        val: images to evaluate on, None to skip evaluation.
        augment: how views are made; by default from `config.data`.

    Raises:
        ValueError, FileNotFoundError: if the data makes the run pointless, see `check_sources`.
        ValueError: if a tracker is unknown or not installed; names it.
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
    ):
        self.config = config
        self.image_processor = image_processor
        self.val = val
        self.output_dir = Path(config.run.output_dir)
        self.accelerator = Accelerator(
            cpu=config.run.cpu,
            mixed_precision=config.run.mixed_precision,
            gradient_accumulation_steps=config.run.gradient_accumulation_steps,
            log_with=config.run.trackers or None,
            project_dir=str(self.output_dir),
            # Images without boxes leave some parameters without a gradient in a step.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        missing = set(config.run.trackers) - {str(tracker) for tracker in self.accelerator.log_with}
        if missing:
            raise ValueError(f"trackers={config.run.trackers}: unknown or not installed: {', '.join(sorted(missing))}")
        warnings = check_sources(labeled, unlabeled, val, seed=config.run.seed)
        if self.accelerator.is_main_process:
            for warning in warnings:
                logger.warning(warning)
        set_seed(config.run.seed)
        schedule = config.schedule
        self.schedule = build_schedule(config)
        self.student = model.to(self.accelerator.device)
        self.teacher = EMATeacher(self.student)
        has_unlabeled = unlabeled is not None and schedule.unsupervised_weight > 0
        objective = build_objective(config, self.student, has_unlabeled=has_unlabeled)
        optimizer = build_optimizer(objective, config.optimizer)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.scheduler = build_scheduler(optimizer, config.optimizer, schedule.num_steps)
        self.augment = augment or AugmentConfig(
            short_edges=tuple(config.data.short_edges),
            long_edge=config.data.long_edge,
            flip_probability=config.data.flip_probability,
        )
        self.datasets: list[LabeledDataset | UnlabeledDataset] = []
        data, seed = config.data, config.run.seed
        views = (self.augment, image_processor.image_mean, image_processor.image_std)
        self.labeled_batches: Iterator[LabeledBatch] = self._batches(
            LabeledDataset(labeled, *views), data.labeled_batch_size, num_steps=schedule.num_steps, seed=seed
        )
        self.unlabeled_batches: Iterator[UnlabeledBatch] | None = None
        if unlabeled is not None and schedule.unsupervised_weight > 0:
            steps = schedule.num_steps - schedule.burn_in_steps
            self.unlabeled_batches = self._batches(
                UnlabeledDataset(unlabeled, *views), data.unlabeled_batch_size, num_steps=steps, seed=seed + 1
            )
        self.instruments = None
        if config.run.instruments and self.unlabeled_batches is not None:
            self.instruments = self._instruments(unlabeled)
        self.step = 0
        self.best: tuple[DetectionMetrics, str, int] | None = None

    def _instruments(self, unlabeled: Source | None) -> Instruments:
        if not isinstance(unlabeled, CocoSource) or unlabeled.num_boxes == 0:
            raise ValueError(
                "instruments=True: the unlabeled images have no labels; use label_fraction, or leave it out"
            )
        return Instruments(
            hidden_labels(unlabeled),
            self.output_dir if self.accelerator.is_main_process else None,
            rule=self.config.consistency.cost_threshold,
            record_costs_every=self.config.run.log_every,
        )

    def _batches(
        self, dataset: LabeledDataset | UnlabeledDataset, batch_size: int, *, num_steps: int, seed: int
    ) -> Iterator[Any]:
        """Return the batches of this process for so many optimizer steps."""
        self.datasets.append(dataset)
        draws = num_steps * self.config.run.gradient_accumulation_steps * batch_size * self.accelerator.num_processes
        sampler = PassSampler(len(dataset), draws, seed=seed)
        loader = view_loader(dataset, sampler, batch_size=batch_size, num_workers=self.config.data.num_workers)
        return iter(self.accelerator.prepare(loader))

    def train(self) -> TrainingResult:
        """Run all steps, evaluate, and write the networks.

        Raises:
            FloatingPointError: if a loss or a gradient is not finite; names the losses and images.
        """
        run, schedule = self.config.run, self.config.schedule
        main = self.accelerator.is_main_process
        if main:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            self.config.save(self.output_dir / "config.yaml")
        self.accelerator.init_trackers("semidetr", config=flatten(self.config.to_dict()))
        log = self._new_log() if main else None
        means = RunningMeans()
        started = time.monotonic()
        metrics: dict[str, DetectionMetrics] = {}

        with tqdm(total=schedule.num_steps, desc=self._phase(), disable=not main, dynamic_ncols=True) as bar:
            while self.step < schedule.num_steps:
                means.update(self.train_step())
                self.step += 1
                bar.update()
                bar.set_description(self._phase(), refresh=False)
                last = self.step == schedule.num_steps

                # Once in a while: log.
                if self.step % run.log_every == 0 or last:
                    row = means.compute() | {"learning_rate": self.scheduler.get_last_lr()[-1]}
                    row |= {"unreadable_images": self._num_unreadable()} if last else {}
                    row |= self.instruments.compute() if self.instruments is not None else {}
                    means.reset()
                    self._record(log, row, started)
                    bar.set_postfix(loss=f"{row['loss']:.2f}", pseudo_labels=f"{row.get('pseudo_labels', 0):.1f}")

                # Once in a while: keep both networks, so that a run that breaks off leaves something.
                if self.step % run.eval_every == 0 or last:
                    for name, detector in self.networks.items():
                        self._save(detector, name)

                # Once in a while: evaluate the networks and keep the best one.
                if self.val is not None and (self.step % run.eval_every == 0 or last):
                    metrics = self.evaluate()
                    row = {f"{name}/{key}": value for name, m in metrics.items() for key, value in m.to_dict().items()}
                    row |= self.evaluate_with_and_without_nms(metrics) if run.instruments else {}
                    self._record(log, row, started)

        num_unreadable = self._num_unreadable()
        for batches in filter(None, (self.labeled_batches, self.unlabeled_batches)):
            next(batches, None)  # runs the loaders to their end, which ends their workers
        self.accelerator.end_training()
        best, network, step = self.best or (None, None, None)
        return TrainingResult(
            student=metrics.get("student"),
            teacher=metrics.get("teacher"),
            best=best,
            best_network=network,
            best_step=step,
            num_unreadable=num_unreadable,
            seconds=time.monotonic() - started,
        )

    def _new_log(self) -> JsonlLog:
        path = self.output_dir / "log.jsonl"
        if path.exists():
            logger.warning("%s is replaced: the folder holds an earlier run", path)
            path.unlink()
        return JsonlLog(path)

    def _num_unreadable(self) -> int:
        """Return how many images could not be read so far, on all processes and in all loader workers together."""
        flags = [dataset.is_unreadable.to(self.accelerator.device, torch.int64) for dataset in self.datasets]
        return sum(int((self.accelerator.reduce(flag) > 0).sum()) for flag in flags)

    def train_step(self) -> dict[str, float]:
        """Make one optimizer step and return its numbers, means over the accumulated batches."""
        self.objective.train()
        means = RunningMeans()
        for _ in range(self.config.run.gradient_accumulation_steps):
            with self.accelerator.accumulate(self.objective):
                means.update(self._accumulate(self._next_batch()))
        self._share_buffers()
        # The copy that the teacher began as was update 0: it is the running average of all students from the first on.
        self.teacher.update(self.student, self.schedule.ema_momentum(self.teacher.num_updates + 1))
        if self.unlabeled_batches is not None and self.schedule.ends_burn_in(self.step):
            # Both networks go on from the averaged weights, the better ones.
            self.student.load_state_dict(self.teacher.detector.state_dict())
        return means.compute()

    def _share_buffers(self) -> None:
        """Give every process the running statistics of the first one; only gradients are averaged by themselves."""
        if self.accelerator.num_processes > 1:
            # Frozen norms are of another class; they are the same everywhere and stay so.
            for norm in (module for module in self.objective.modules() if isinstance(module, _BatchNorm)):
                for buffer in norm.buffers():
                    broadcast(buffer)

    def _accumulate(self, batch: SemiBatch) -> dict[str, Tensor | float]:
        """Add the gradients of one batch; make the optimizer step if it is the last of its step."""
        stage = self.schedule.stage_at(self.step)
        weights = self.schedule.loss_weights(stage)
        try:
            with self.accelerator.autocast():
                losses = self.objective(batch, self.teacher, stage, weights)
        except FloatingPointError as error:
            # Predictions that are not finite cannot be matched, and the matcher does not know the images.
            raise FloatingPointError(f"{self._describe_bad_step('predictions', batch)} ({error})") from error
        loss = self._weigh(losses, weights)
        named = losses.supervised | losses.pseudo | losses.consistency
        if not torch.isfinite(loss):
            bad = [name for name, value in named.items() if not torch.isfinite(value)]
            raise FloatingPointError(self._describe_bad_step(f"losses {', '.join(bad)}", batch))
        self.accelerator.backward(loss)
        numbers: dict[str, Tensor | float] = {"loss": loss.detach(), **named}
        if batch.unlabeled is not None:
            numbers |= losses.pseudo_label_numbers()
            if self.instruments is not None:
                self.instruments.observe(self.step, losses, batch.unlabeled)
        if self.accelerator.sync_gradients:
            parameters = self.objective.parameters()
            norm = self.accelerator.clip_grad_norm_(parameters, self.config.optimizer.max_grad_norm)
            # The loss scaler of fp16 leaves out steps with infinite gradients; nothing else does.
            if torch.isfinite(norm):
                numbers["gradient_norm"] = norm
            elif self.accelerator.scaler is None:
                raise FloatingPointError(self._describe_bad_step("gradients", batch))
        self.optimizer.step()
        if self.accelerator.sync_gradients:
            self.scheduler.step()
        self.optimizer.zero_grad()
        return numbers

    def _weigh(self, losses: StepLosses, weights: LossWeights) -> Tensor:
        """Return the total loss: L_sup + w_u * L_pseudo + w_c * sum of the consistency of all layers."""
        total = self.student.weigh(losses.supervised)
        if losses.pseudo:
            total = total + weights.pseudo * self.student.weigh(losses.pseudo)
        if losses.consistency:
            total = total + weights.consistency * torch.stack(list(losses.consistency.values())).sum()
        return total

    def _next_batch(self) -> SemiBatch:
        unlabeled = None
        if self.unlabeled_batches is not None and self.schedule.uses_unlabeled(self.step):
            unlabeled = next(self.unlabeled_batches)
        return SemiBatch(labeled=next(self.labeled_batches), unlabeled=unlabeled)

    def _describe_bad_step(self, what: str, batch: SemiBatch) -> str:
        images = list(batch.labeled.image_ids)
        images += batch.unlabeled.image_ids if batch.unlabeled is not None else []
        return (
            f"step {self.step}: the {what} are not finite on images {images}; "
            "lower learning_rate or max_grad_norm, or leave these images out"
        )

    @property
    def networks(self) -> dict[str, SemiDetrForObjectDetection]:
        """Student and teacher, unwrapped."""
        return {"student": self.student, "teacher": self.teacher.detector}

    def processor_of_stage(self) -> SemiDetrImageProcessor:
        """Return the image processor that suits what the last step trained: with NMS in the one-to-many stage.

        There several queries learn to answer the same object.
        """
        stage = self.schedule.stage_at(max(self.step - 1, 0))
        return self._processor(self.config.pseudo_labels.nms_iou if stage is Stage.ONE_TO_MANY else None)

    def _processor(self, nms_iou: float | None) -> SemiDetrImageProcessor:
        processor = copy.copy(self.image_processor)
        processor.nms_iou = nms_iou
        return processor

    def evaluate_with_and_without_nms(self, metrics: dict[str, DetectionMetrics]) -> dict[str, float]:
        """Return the AP of the evaluated networks by name, with and without suppression, whatever the stage.

        Args:
            metrics: what `evaluate` has just returned; only the other way remains to be evaluated.
        """
        aps: dict[str, float] = {}
        for name, known in metrics.items():
            with_nms = self.processor_of_stage().nms_iou is not None
            other = self._processor(None if with_nms else self.config.pseudo_labels.nms_iou)
            found = self._evaluate(self.networks[name], other, f"evaluate {name}")
            aps |= {f"{name}/ap_nms": (known if with_nms else found).ap}
            aps |= {f"{name}/ap_no_nms": (found if with_nms else known).ap}
        return aps

    def _evaluate(
        self, network: SemiDetrForObjectDetection, processor: SemiDetrImageProcessor, desc: str
    ) -> DetectionMetrics:
        if self.val is None:
            raise ValueError("evaluate() needs validation images: give the trainer `val`")
        batch_size = self.config.data.labeled_batch_size
        return evaluate(network, processor, self.val, batch_size=batch_size, accelerator=self.accelerator, desc=desc)[
            0
        ]

    def evaluate(self) -> dict[str, DetectionMetrics]:
        """Return the metrics of the networks on the validation images; save the best one if it is the best so far.

        Raises:
            ValueError: if the trainer has no validation images.
        """
        metrics = {}
        for name in self.config.run.evaluated_networks:
            network = self.networks[name]
            metrics[name] = self._evaluate(network, self.processor_of_stage(), f"evaluate {name}")
            if self.best is None or metrics[name].ap > self.best[0].ap:
                self.best = (metrics[name], name, self.step)
                self._save(network, "best")
        return metrics

    def _save(self, network: SemiDetrForObjectDetection, name: str) -> None:
        if self.accelerator.is_main_process:
            save_detector(network, self.processor_of_stage(), self.output_dir / name)

    def _record(self, log: JsonlLog | None, row: dict[str, Any], started: float) -> None:
        if log is not None:
            log.append({"step": self.step, "time": round(time.monotonic() - started, 3), **row})
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=self.step)

    def _phase(self) -> str:
        if self.unlabeled_batches is None:
            return "supervised"
        if not self.schedule.uses_unlabeled(self.step):
            return "burn-in"
        return self.schedule.stage_at(self.step).value.replace("_", "-")
