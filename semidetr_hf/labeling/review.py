"""What a review of pseudo-labels consists of: the settings it is made with, and what comes out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semidetr_hf.labeling.calibration import Calibration
from semidetr_hf.labeling.detection import DetectionRules
from semidetr_hf.labeling.label_studio import LOCAL_FILES
from semidetr_hf.labeling.labels import LabeledImage

MAX_LISTED = 5  # unreadable images in the text
FORMATS = ("coco", "yolo", "label-studio")


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """What is labeled, and how it is written.

    Attributes:
        formats: which label files: of "coco", "yolo" and "label-studio".
        threshold: smallest score of a label, for all classes; not used where `precision` is given.
        precision: wanted share of right labels, above 0 and below 1, from which the threshold of every class follows;
            needs labeled images.
        top: write only the so many most uncertain images; None for all.
        sheet: pictures on the sheet of the most uncertain images; 0 for no sheet.
        batch_size: images per process and forward pass.
        rules: which predictions of the detector count.
        yolo_confidence: see `write_yolo`.
        label_studio_prefix: see `write_label_studio`.
        label_studio_root: where the paths behind it start.
        progress: whether the main process shows bars.
    """

    formats: tuple[str, ...] = ("coco",)
    threshold: float = 0.3
    precision: float | None = None
    top: int | None = None
    sheet: int = 12
    batch_size: int = 8
    rules: DetectionRules = field(default_factory=DetectionRules)
    yolo_confidence: bool = False
    label_studio_prefix: str = LOCAL_FILES
    label_studio_root: Path = Path("/")
    progress: bool = True

    def __post_init__(self) -> None:
        if not self.formats or not set(self.formats) <= set(FORMATS):
            raise ValueError(f"formats={list(self.formats)}: give one or more of {', '.join(FORMATS)}")
        if not self.rules.min_score <= self.threshold <= 1:
            raise ValueError(
                f"threshold={self.threshold}: must be from min_score={self.rules.min_score} to 1; lower scores "
                "are not kept account of"
            )
        if self.precision is not None and not 0 < self.precision < 1:
            raise ValueError(f"precision={self.precision}: must be above 0 and below 1")
        for name, least in (("top", 1), ("sheet", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: must be {least} or more")


@dataclass(frozen=True, kw_only=True)
class Review:
    """What was written.

    Attributes:
        folder: where it is.
        model: the detector.
        categories: category id -> name of its classes, for class label i at place i.
        images: those written, most uncertain first.
        num_readable: images that were labeled, whether or not they are among the written ones.
        unreadable: the id of every image that cannot be read, and why.
        threshold: smallest score of a label; None where each class has its own.
        calibration: thresholds by class; None where there is one for all.
        warnings: what to know about them.
    """

    folder: Path
    model: str
    categories: dict[int, str]
    images: list[LabeledImage]
    num_readable: int
    unreadable: list[tuple[int | str, str]]
    threshold: float | None
    calibration: Calibration | None
    warnings: tuple[str, ...]

    @property
    def class_counts(self) -> list[int]:
        """How many labels class i has at place i."""
        counts = [0] * len(self.categories)
        for image in self.images:
            for label in image.labels.class_labels.tolist():
                counts[label] += 1
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Return what a json can hold."""
        return {
            "model": self.model,
            "images": len(self.images),
            "labels": dict(zip(self.categories.values(), self.class_counts, strict=True)),
            "images_labeled": self.num_readable,
            "threshold": self.threshold,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "warnings": list(self.warnings),
            "unreadable": [{"image_id": image_id, "reason": reason} for image_id, reason in self.unreadable],
        }

    def to_text(self) -> str:
        """Return a table of the classes and what was written, for a terminal."""
        width = max(5, *(len(name) for name in self.categories.values()))
        lines = [f"{'class':{width}}  threshold  expected precision  labels"]
        for place, (name, count) in enumerate(zip(self.categories.values(), self.class_counts, strict=True)):
            threshold, estimate = self.threshold, None
            if self.calibration is not None:
                entry = self.calibration.classes[place]
                threshold, estimate = entry.threshold, None if entry.threshold is None else entry.estimate
            cells = [
                "none" if threshold is None else f"{threshold:.3f}",
                "" if estimate is None else f"{estimate:.2f}",
            ]
            lines.append(f"{name:{width}}  {cells[0]:>9}  {cells[1]:>18}  {count:>6}")
        lines += [f"cannot be read: {reason}" for _, reason in self.unreadable[:MAX_LISTED]]
        if len(self.unreadable) > MAX_LISTED:
            lines.append(f"and {len(self.unreadable) - MAX_LISTED} more that cannot be read, all in review.json")
        counted = f"{sum(self.class_counts)} labels on {len(self.images)} images"
        of_all = "" if len(self.images) == self.num_readable else f", the most uncertain of {self.num_readable}"
        return "\n".join([*lines, f"{counted}{of_all}; {len(self.unreadable)} unreadable; in {self.folder}"])
