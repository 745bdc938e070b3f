"""The networks that a run leaves: student, teacher, and the better of them at the best evaluation."""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.model import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.structures import Stage
from semidetr_hf.training.evaluation import DetectionMetrics, evaluate
from semidetr_hf.training.saved_detectors import save_detector
from semidetr_hf.training.sharding import whole_network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BestNetwork:
    """What is in `best/`.

    Attributes:
        metrics: of the network.
        network: "student" or "teacher".
        step: after how many optimizer steps it was taken.
    """

    metrics: DetectionMetrics
    network: str
    step: int

    def state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {"metrics": self.metrics.to_dict(), "network": self.network, "step": self.step}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "BestNetwork":
        """Return what `state` was called on."""
        return cls(DetectionMetrics.from_dict(state["metrics"]), state["network"], state["step"])


@dataclass(kw_only=True)
class RunNetworks:
    """Evaluates and writes the networks of a run.

    Attributes:
        accelerator: every process evaluates a share of the images; the main one writes.
        networks: "student" and "teacher", unwrapped.
        evaluated: which of them are evaluated and may become the best.
        image_processor: of the run.
        nms_iou: boxes of a class that overlap more are duplicates, in the one-to-many stage.
        val: images to evaluate on; None for a run without evaluation.
        batch_size: images per process.
        folder: where they are written.
        metrics: of the last evaluation, by network.
        best: of all evaluations up to now.
    """

    accelerator: Accelerator
    networks: dict[str, SemiDetrForObjectDetection]
    evaluated: list[str]
    image_processor: SemiDetrImageProcessor
    nms_iou: float
    val: CocoSource | None
    batch_size: int
    folder: Path
    metrics: dict[str, DetectionMetrics] = field(default_factory=dict)
    best: BestNetwork | None = None

    def evaluate(self, step: int, stage: Stage) -> dict[str, DetectionMetrics]:
        """Return the metrics of the networks on the validation images; write the best one if it is the best so far.

        Args:
            step: number of optimizer steps made.
            stage: of the last of them.

        Raises:
            ValueError: if there are no validation images.
        """
        processor = self.processor(with_nms=stage is Stage.ONE_TO_MANY)
        self.metrics = {}
        for name in self.evaluated:
            self.metrics[name] = found = self._evaluate(name, processor)
            if self.best is None or found.ap > self.best.metrics.ap:
                self.best = BestNetwork(found, name, step)
                self._write(name, "best", processor)
        return self.metrics

    def evaluate_other_way(self, stage: Stage) -> dict[str, float]:
        """Return the AP of the evaluated networks by name, with and without suppression, whatever the stage.

        Args:
            stage: that `evaluate` was called with just before; only the other way remains to be evaluated.
        """
        with_nms = stage is Stage.ONE_TO_MANY
        aps: dict[str, float] = {}
        for name, known in self.metrics.items():
            found = self._evaluate(name, self.processor(with_nms=not with_nms))
            aps |= {f"{name}/ap_nms": (known if with_nms else found).ap}
            aps |= {f"{name}/ap_no_nms": (found if with_nms else known).ap}
        return aps

    def write(self, stage: Stage) -> None:
        """Write student and teacher as the last step, of that stage, left them."""
        for name in self.networks:
            self._write(name, name, self.processor(with_nms=stage is Stage.ONE_TO_MANY))

    def take_back_best(self, best: BestNetwork, step: int, stage: Stage, *, is_kept: bool) -> None:
        """Remember the best network of a checkpoint, and see to it that it is in `best/`.

        Args:
            best: as the checkpoint says.
            step: of the checkpoint; only if it is that of the best network, `best/` can be written anew.
            stage: of the last step.
            is_kept: whether there is a checkpoint of the step of the best network.
        """
        self.best = best
        if best.step == step:
            self._write(best.network, "best", self.processor(with_nms=stage is Stage.ONE_TO_MANY))
        elif not (self.folder / "best").is_dir():
            where = self.folder / "best"
            if is_kept:
                logger.warning(
                    "%s: not there any more; its weights are in the checkpoint of step %d", where, best.step
                )
            else:
                logger.warning("%s: not there any more; the evaluations to come compete for it anew", where)
                self.best = None

    def processor(self, *, with_nms: bool) -> SemiDetrImageProcessor:
        """Return the image processor that suits a stage: with suppression in the one-to-many stage.

        There several queries learn to answer the same object.
        """
        processor = copy.copy(self.image_processor)
        processor.nms_iou = self.nms_iou if with_nms else None
        return processor

    def _evaluate(self, name: str, processor: SemiDetrImageProcessor) -> DetectionMetrics:
        if self.val is None:
            raise ValueError("evaluate() needs validation images: give the trainer `val`")
        return evaluate(
            self._whole(name),
            processor,
            self.val,
            batch_size=self.batch_size,
            accelerator=self.accelerator,
            desc=f"evaluate {name}",
        )[0]

    def _whole(self, name: str) -> SemiDetrForObjectDetection:
        return whole_network(self.networks[name], like=self.networks["teacher"])

    def _write(self, name: str, folder: str, processor: SemiDetrImageProcessor) -> None:
        network = self._whole(name)
        if self.accelerator.is_main_process:
            save_detector(network, processor, self.folder / folder)
