"""How many pseudo-labels are right, where the labels of the unlabeled images are known after all.

That is so when part of a labeled data set stands in for the unlabeled images. The hidden labels are only counted
with; nothing here may reach a loss.

Source: no part of the method of Semi-DETR (arXiv 2307.08095) and not taken from its released code; it measures the
pseudo-labels that the method selects and mines. What counts as right is COCO's rule at one IoU threshold.

Legend: B images, G pseudo-labels of one image, T hidden boxes of one image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from semidetr_hf.data.coco_json import visible_box
from semidetr_hf.model.box_ops import iou
from semidetr_hf.ssod.pseudo_labels import project_to_view
from semidetr_hf.structures import PseudoLabels, View
from semidetr_hf.training.evaluation import EvaluationSource, ImageId

# image id -> boxes (T, 4) float32 xyxy in pixels of the original, class labels (T,) int64; on the CPU
HiddenLabels = Mapping[ImageId, tuple[Tensor, Tensor]]

MIN_VISIBLE_SIZE = 1.0  # pixels; the trainer asks the same of a pseudo-label in the strong view


@dataclass(frozen=True)
class QualityCounts:
    """Counts over any number of images; they add up over batches, log intervals and processes.

    Attributes:
        matched: pseudo-labels that found a hidden box of their class.
        predicted: all pseudo-labels.
        true: all hidden boxes that can be seen in the views.
        iou_sum: sum of the IoU of the matched pairs.
    """

    matched: int = 0
    predicted: int = 0
    true: int = 0
    iou_sum: float = 0.0

    def __add__(self, other: "QualityCounts") -> "QualityCounts":
        return QualityCounts(
            matched=self.matched + other.matched,
            predicted=self.predicted + other.predicted,
            true=self.true + other.true,
            iou_sum=self.iou_sum + other.iou_sum,
        )

    @property
    def precision(self) -> float | None:
        """Share of the pseudo-labels that are right; None without pseudo-labels."""
        return self.matched / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of the hidden boxes that were found; None without hidden boxes."""
        return self.matched / self.true if self.true else None

    @property
    def mean_iou(self) -> float | None:
        """Mean IoU of the matched pairs, how well right boxes fit; None without a match."""
        return self.iou_sum / self.matched if self.matched else None


def hidden_labels(source: EvaluationSource) -> dict[ImageId, tuple[Tensor, Tensor]]:
    """Return the boxes of every image of a labeled source, without opening an image.

    Args:
        source: read with its labels. Its class labels must mean what those of the training source mean: the same
            `category_ids` in the same order.

    Returns:
        Image id -> boxes (T, 4) float32 xyxy in pixels of the original and class labels (T,) int64. They are the boxes
        that training would see: crowds and ignored boxes are absent, the rest is clipped to the image. Images without
        boxes have an entry with T = 0.

    Raises:
        ValueError: if no image has an annotation, as in a source that was opened with `labeled=False`: all its images
            would pass for images that show nothing.
    """
    document = source.coco_ground_truth()
    if not document["annotations"]:
        raise ValueError(
            f"annotations=[] for all {len(document['images'])} images of the source of hidden labels; open it with "
            "labeled=True, from a file that has boxes"
        )
    label_of = {category_id: label for label, category_id in enumerate(source.category_ids)}
    sizes = {
        image["id"]: (image["height"], image["width"]) if "height" in image else None for image in document["images"]
    }
    found: dict[ImageId, list[tuple[tuple[float, ...], int]]] = {image_id: [] for image_id in sizes}
    for annotation in document["annotations"]:
        box = visible_box(annotation["bbox"], sizes[annotation["image_id"]])
        if box is not None and not annotation.get("iscrowd"):
            found[annotation["image_id"]].append((box, label_of[annotation["category_id"]]))
    return {
        image_id: (
            torch.tensor([box for box, _ in rows], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([label for _, label in rows], dtype=torch.int64),
        )
        for image_id, rows in found.items()
    }


def count_matches(
    pseudo: Sequence[PseudoLabels],
    view: View,
    image_ids: Sequence[ImageId],
    hidden: HiddenLabels,
    *,
    iou_threshold: float = 0.5,
) -> QualityCounts:
    """Count the pseudo-labels of a batch that are right and the hidden boxes that they should have found.

    Args:
        pseudo: B entries, boxes in pixels of `view`.
        view: where they were found or to where they were projected.
        image_ids: B ids of the originals.
        hidden: the labels of at least these images.
        iou_threshold: smallest IoU of a match, above 0 and at most 1.

    Returns:
        The counts of all B images. A hidden box counts when more than one pixel of its width and height lies within
        the view, also where the view was erased.

    Raises:
        KeyError: if an image has no entry in `hidden`; names its id.
        ValueError: if the numbers of entries differ or `iou_threshold` is out of range.
    """
    counts = QualityCounts()
    for overlaps, num_true in _matches(pseudo, view, image_ids, hidden, iou_threshold):
        counts += QualityCounts(
            matched=int((overlaps > 0).sum()),
            predicted=len(overlaps),
            true=num_true,
            iou_sum=float(overlaps.sum()),
        )
    return counts


def is_correct(
    pseudo: Sequence[PseudoLabels],
    view: View,
    image_ids: Sequence[ImageId],
    hidden: HiddenLabels,
    *,
    iou_threshold: float = 0.5,
) -> list[Tensor]:
    """Return which pseudo-labels are right, by the matching of `count_matches` and with its arguments.

    Returns:
        Per image (G,) bool on the device of the pseudo-labels, in their order. Of two that lie on the same object only
        the higher-scored one is right.

    Raises:
        KeyError: if an image has no entry in `hidden`; names its id.
        ValueError: if the numbers of entries differ or `iou_threshold` is out of range.
    """
    matches = _matches(pseudo, view, image_ids, hidden, iou_threshold)
    return [(overlaps > 0).to(labels.boxes_xyxy.device) for labels, (overlaps, _) in zip(pseudo, matches, strict=True)]


def _matches(
    pseudo: Sequence[PseudoLabels],
    view: View,
    image_ids: Sequence[ImageId],
    hidden: HiddenLabels,
    iou_threshold: float,
) -> Iterator[tuple[Tensor, int]]:
    """Yield per image what `_matched_overlaps` returns and the number of its visible hidden boxes."""
    if not len(pseudo) == len(view) == len(image_ids):
        raise ValueError(
            f"{len(pseudo)} entries of pseudo-labels came with {len(view)} images in the view and {len(image_ids)} "
            "image ids; give one of each per image"
        )
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold={iou_threshold}: must be above 0 and at most 1")
    for labels, true in zip(pseudo, _visible_labels(view, image_ids, hidden), strict=True):
        yield _matched_overlaps(labels, true, iou_threshold), len(true)


def _visible_labels(view: View, image_ids: Sequence[ImageId], hidden: HiddenLabels) -> list[PseudoLabels]:
    """Return the hidden labels in pixels of the view, mapped as the pseudo-labels are, with scores of 1."""
    originals = []
    for image_id in image_ids:
        if image_id not in hidden:
            raise KeyError(
                f"image id {image_id!r} is not among the {len(hidden)} images with hidden labels; "
                "make them from the source of the unlabeled images"
            )
        boxes, class_labels = hidden[image_id]
        originals.append(PseudoLabels(boxes_xyxy=boxes, class_labels=class_labels, scores=torch.ones(len(boxes))))
    # The view that was not moved stands for the originals; nothing but its homographies is read.
    unmoved = replace(view, homographies=torch.eye(3, dtype=torch.float64).expand(len(view), 3, 3))
    pairs = project_to_view(originals, unmoved, view, min_box_size=MIN_VISIBLE_SIZE)
    return [pair.strong for pair in pairs]


def _matched_overlaps(labels: PseudoLabels, true: PseudoLabels, iou_threshold: float) -> Tensor:
    """Let pseudo-labels take hidden boxes in descending order of score, each the free one that fits best.

    Args:
        labels: G pseudo-labels of one image.
        true: T hidden labels of the same image, in the same pixels, on the CPU.
        iou_threshold: smallest IoU of a match.

    Returns:
        (G,) float64 on the CPU, the IoU with the box that was taken, 0 where none was.

    Source: the matching of COCO's evaluation (pycocotools), for boxes that are no crowds.
    """
    taken = torch.zeros(len(labels), dtype=torch.float64)
    if not len(labels) or not len(true):
        return taken
    # float64, as COCO's evaluation: an IoU on the threshold, such as 7 of 10 pixels, must not fail by rounding.
    overlaps = iou(labels.boxes_xyxy.detach().cpu().double()[:, None], true.boxes_xyxy.double()[None])  # (G, T)
    overlaps[labels.class_labels.cpu()[:, None] != true.class_labels[None]] = 0
    for row in labels.scores.cpu().argsort(descending=True, stable=True).tolist():
        best, column = overlaps[row].max(dim=0)
        if best >= iou_threshold:
            taken[row] = best
            overlaps[:, column] = 0
    return taken
