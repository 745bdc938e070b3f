"""A saved detector and a data set, from their paths to the scores: `semidetr eval`, `examples/evaluate.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from accelerate import Accelerator

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.sources import open_source
from semidetr_hf.data.voc import Corners, VocSource
from semidetr_hf.metrics.coco_detection.coco_metrics import DetectionMetrics, coco_metrics, in_words
from semidetr_hf.metrics.voc import VocMetrics, voc_metrics
from semidetr_hf.training.evaluation import detect_all
from semidetr_hf.training.saved_detectors import load_detector

if TYPE_CHECKING:
    from semidetr_hf.data.hub import BboxFormat


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a detector scores on a data set.

    Attributes:
        coco: the twelve COCO numbers and those of every class.
        voc: Pascal VOC's AP50, the area under the curve; None for other data.
        voc_eleven_points: the same as VOC2007 computed it.
    """

    coco: DetectionMetrics
    voc: VocMetrics | None = None
    voc_eleven_points: VocMetrics | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name for JSON, those of VOC below `voc`."""
        numbers = self.coco.to_dict()
        return numbers if self.voc is None else {**numbers, "voc": self.voc.to_dict()}

    def to_text(self) -> str:
        """Return the tables that a terminal shows."""
        parts = [self.coco.to_text()]
        if self.voc is not None and self.voc_eleven_points is not None:
            parts += [
                self.voc.to_text(),
                f"mean of the eleven points of VOC2007: {in_words(self.voc_eleven_points.ap50)}",
            ]
        return "\n\n".join(parts)


def evaluate_saved_detector(
    model_folder: str | Path,
    data: str | Path,
    image_folder: str | Path | None = None,
    *,
    accelerator: Accelerator,
    batch_size: int = 1,
    corners: Corners | None = None,
    bbox_format: "BboxFormat" = "xywh",
    progress: bool = True,
) -> Scores:
    """Score a saved detector on a data set with boxes; every process takes a share of the images.

    Args:
        model_folder: of the detector, called --model in messages.
        data: whatever `open_source` takes for labeled images; of several parts the validation images.
        image_folder: of the images, if they are not found beside the data.
        accelerator: gives the device, and says which process this is.
        batch_size: images per process and forward pass.
        corners: how the boxes of XML files become edges, see `VocSource`.
        bbox_format: of the boxes of a data set of `datasets`, see `HubSource`.
        progress: whether the main process shows a progress bar.

    Returns:
        The scores, the same on every process.

    Raises:
        FileNotFoundError: if there is no such detector or data.
        ValueError: if the detector is broken, the data has no boxes or other categories than the detector, none of the
            images can be read, or `batch_size` is below 1.
    """
    model, processor = load_detector("--model", model_folder)
    ours = tuple(model.config.id2label[label] for label in sorted(model.config.id2label))
    # Every source with boxes is one; a bare folder of images is refused.
    source = cast(
        CocoSource,
        open_source(data, image_folder, part="val", corners=corners, categories=ours, bbox_format=bbox_format),
    )
    if ours != source.category_names:
        raise ValueError(f"{data}: its categories {source.category_names} are not those of the model, {ours}")
    model.to(accelerator.device)
    found, truth = detect_all(
        model, processor, source, batch_size=batch_size, accelerator=accelerator, progress=progress
    )
    coco = coco_metrics(truth, found)
    if not isinstance(source, VocSource):
        return Scores(coco=coco)
    area, eleven = (voc_metrics(truth, found, interpolation=kind) for kind in ("area", "11-point"))
    return Scores(coco=coco, voc=area, voc_eleven_points=eleven)
