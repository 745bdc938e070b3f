"""From a detector and images to a folder for people who review pseudo-labels, the most uncertain images first."""

import logging
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.sources import Source, open_source
from semidetr_hf.labeling.calibration import Calibration, calibrate
from semidetr_hf.labeling.categories import categories_of, same_categories
from semidetr_hf.labeling.detection import Detections, detect_source
from semidetr_hf.labeling.detector_folder import detector_folder
from semidetr_hf.labeling.judging import judge
from semidetr_hf.labeling.labels import label_by_calibration, label_by_threshold
from semidetr_hf.labeling.review import Review, ReviewConfig
from semidetr_hf.labeling.review_folder import require_free, write_review_folder
from semidetr_hf.labeling.training_set import was_trained_on
from semidetr_hf.training.saved_detectors import load_detector

logger = logging.getLogger(__name__)

TRAINED_ON = (
    "{}: the detector was trained on it and knows it by heart, so fewer labels will be right than wanted, on the "
    "embedded digits by 15 points; calibrate on images it has not seen, such as the validation set"
)


def write_review(
    model: str | Path,
    source: Source,
    output: str | Path,
    config: ReviewConfig,
    *,
    calibrate_on: str | Path | None = None,
    calibrate_images: str | Path | None = None,
    accelerator: Accelerator,
) -> Review:
    """Label images with a detector and write what reviewers need; every process takes a share of the images.

    The folder appears when everything in it is written: `labels.json` (COCO), `yolo/`, `label_studio.json` with
    `label_studio_setup.xml`, as the formats say; `ranking.csv`; `most_uncertain.png`; `review.json`, which says how it
    was made; and `images/` with the images that are no files of their own.

    Args:
        model: folder of a saved detector of transformers, or its id on the Hub.
        source: the images; its boxes, if it has any, are not looked at.
        output: a folder that does not exist or is empty.
        config: see there.
        calibrate_on: labeled images that the detector was not trained on, in any format with boxes.
        calibrate_images: folder of its images, if they are not found.
        accelerator: says which process this is and where the detector runs.

    Returns:
        The same on every process.

    Raises:
        FileNotFoundError: if there is no detector or labeled set.
        FileExistsError: if the output is not free.
        ValueError: if one of `config.precision` and `calibrate_on` comes without the other, the labeled set has other
            categories than the detector, no image can be read, or the files of the detector are wrong.
        ConnectionError: if `model` is to be had from the Hub and cannot.
        OSError: if something cannot be written.
    """
    if (config.precision is None) != (calibrate_on is None):
        raise ValueError("precision and calibrate_on need each other; give both, or a threshold alone")
    output, model_folder = Path(output), detector_folder(model)
    require_free(output)
    detector = _Detector(*load_detector("model", model_folder), config, accelerator)
    calibration: Calibration | None = None
    warnings: list[str] = []
    if config.precision is not None and calibrate_on is not None:
        calibration, warnings = _calibrate(detector, config.precision, calibrate_on, calibrate_images)
        if was_trained_on(model_folder, Path(calibrate_on)):
            warnings.insert(0, TRAINED_ON.format(calibrate_on))
    found = detector.detections(source, "label")
    if calibration is None:
        images = label_by_threshold(found.images, config.threshold)
    else:
        images = label_by_calibration(found.images, calibration)
    review = Review(
        folder=output,
        model=str(model),
        categories=detector.categories,
        images=images[: config.top],
        num_readable=len(images),
        unreadable=found.unreadable,
        threshold=config.threshold if calibration is None else None,
        calibration=calibration,
        warnings=tuple(warnings),
    )
    if accelerator.is_main_process:
        for warning in review.warnings:
            logger.warning("%s", warning)
        write_review_folder(review, source, config)
    accelerator.wait_for_everyone()
    return review


class _Detector:
    """A detector and how it is used here."""

    def __init__(self, model: Any, processor: Any, config: ReviewConfig, accelerator: Accelerator) -> None:
        self.model, self.processor = model.to(accelerator.device), processor
        self.config, self.accelerator = config, accelerator
        self.categories = categories_of(model)

    def detections(self, source: Source, desc: str) -> Detections:
        return detect_source(
            self.model,
            self.processor,
            source,
            rules=self.config.rules,
            batch_size=self.config.batch_size,
            accelerator=self.accelerator,
            desc=desc,
            progress=self.config.progress,
        )


def _calibrate(
    detector: _Detector, precision: float, path: str | Path, image_folder: str | Path | None
) -> tuple[Calibration, list[str]]:
    """Return the calibration and what to know about it."""
    names = tuple(detector.categories.values())
    # Every source with boxes is one; what has none is refused.
    source = cast(CocoSource, open_source(path, image_folder, part="val", categories=names))
    ids = same_categories(source, detector.categories, str(path))
    found = detector.detections(source, "calibrate")
    calibration = calibrate(judge(found.images, source, ids), names, precision)
    warnings = []
    if found.unreadable:
        count = f"{len(found.unreadable)} of {len(source)} images"
        warnings.append(
            f"{path}: {count} cannot be read and do not count, the first because: {found.unreadable[0][1]}"
        )
    if unlabeled := [entry for entry in calibration.classes if entry.threshold is None]:
        listed = ", ".join(
            f"{entry.name} ({'never found' if entry.estimate is None else f'at best {entry.estimate:.2f}'}, "
            f"objects: {entry.num_objects})"
            for entry in unlabeled
        )
        warnings.append(
            f"{len(unlabeled)} of {len(names)} classes get no labels, since a precision of {precision} is not reached "
            f"at any score on {path}: {listed}; ask for less, or give more labeled images"
        )
    return calibration, warnings
