"""COCO's average precision as a metric of the `evaluate` library, for any detector and any training loop.

    import evaluate

    metric = evaluate.load("semidetr_hf/metrics/coco_detection")  # this folder, wherever it is; no network is needed
    for batch in loader:
        metric.add_batch(predictions=processor.post_process_object_detection(...), references=batch_of_boxes)
    metric.compute()["ap"]

`evaluate` copies this file and those that it imports from its folder, and nothing else of the package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from .coco_metrics import coco_metrics

_DESCRIPTION = """\
The twelve numbers of the COCO evaluation of boxes (average precision and recall), and AP, AP50 and the number of boxes
of every class. Computed by faster-coco-eval where it is installed, else by pycocotools; the numbers are the same.
"""
_CITATION = """\
@inproceedings{lin2014coco,
  title = {Microsoft {COCO}: Common Objects in Context},
  author = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro and Ramanan, Deva
            and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  booktitle = {ECCV},
  year = {2014}
}
"""
_INPUTS = """
Args:
    predictions: one dict per image: `boxes` (N, 4) xyxy in pixels, `scores` (N,) and `labels` (N,) from 0, as
        `post_process_object_detection` of an image processor returns them. All of them count, so give no threshold.
    references: one dict per image, in the same order: `boxes` (G, 4) xyxy in pixels of the same image and `labels`
        (G,); and, if known, `iscrowd` (G,) 0 or 1 and `area` (G,) in pixels, by which COCO tells small objects from
        large ones. Without them no box is a crowd, and the area is that of the box.
    class_names: name of every label; by default the labels that occur stand for themselves.
    max_detections: how many of the best detections of an image and class count, above 10.

Returns:
    `ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`, `ar1`, `ar10`, `ar100`, `ar_small`, `ar_medium`,
    `ar_large`, from 0 to 1, and by class name `per_class` (AP), `per_class_ap50` and `per_class_boxes`. None where
    there is no box to find.

Raises:
    ValueError: if a field is missing, lists of one image differ in length, a label has no name, or
        names repeat; names the field.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class CocoDetection(evaluate.Metric):
    """Boxes scored as COCO does."""

    def _info(self) -> evaluate.MetricInfo:
        boxes = datasets.Sequence(datasets.Sequence(datasets.Value("float64"), length=4))
        numbers, labels = datasets.Sequence(datasets.Value("float64")), datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": {"boxes": boxes, "scores": numbers, "labels": labels},
                    "references": {"boxes": boxes, "labels": labels, "iscrowd": labels, "area": numbers},
                }
            ),
            reference_urls=["https://cocodataset.org/#detection-eval"],
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add the detections and boxes of several images; fields as `compute` takes them."""
        predictions = [_plain("predictions", item, ("boxes", "scores", "labels")) for item in predictions]
        super().add_batch(predictions=predictions, references=[_with_crowds(item) for item in references], **kwargs)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add the detections and boxes of one image."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def _compute(
        self,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        class_names: Sequence[str] | None = None,
        max_detections: int = 100,
    ) -> dict[str, Any]:
        detections = _entries(predictions, {"labels": "category_id", "scores": "score"})
        annotations = _entries(references, {"labels": "category_id", "iscrowd": "iscrowd", "area": "area"})
        ground_truth = {
            "images": [{"id": image} for image in range(len(references))],
            "annotations": annotations,
            "categories": _categories(class_names, {entry["category_id"] for entry in [*detections, *annotations]}),
        }
        return coco_metrics(ground_truth, detections, max_detections=max_detections).to_dict()


def _plain(name: str, item: Mapping[str, Any], fields: Sequence[str]) -> dict[str, list[Any]]:
    """Return the fields of one image as lists of equal lengths, whether they were lists, arrays or tensors."""
    if missing := [field for field in fields if field not in item]:
        raise ValueError(f"{name}: an image has no {missing[0]!r}, only {', '.join(item)}; give {', '.join(fields)}")
    values = {key: item[key].tolist() if hasattr(item[key], "tolist") else list(item[key]) for key in fields}
    lengths = {key: len(value) for key, value in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: the lists of an image differ in length ({lengths}); give one entry per box")
    return values


def _with_crowds(item: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the reference of one image, none of its boxes a crowd where it does not say."""
    given = [field for field in ("iscrowd", "area") if field in item]
    values = _plain("references", item, ("boxes", "labels", *given))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in values["boxes"]]
    return {"iscrowd": [0] * len(areas), "area": areas} | values


def _entries(images: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one COCO annotation or result per box; `names` are those of fields here and there."""
    return [
        {"image_id": image, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        | {theirs: content[ours][place] for ours, theirs in names.items()}
        for image, content in enumerate(images)
        for place, (x1, y1, x2, y2) in enumerate(content["boxes"])
    ]


def _categories(class_names: Sequence[str] | None, labels: set[int]) -> list[dict[str, Any]]:
    names = {label: str(label) for label in sorted(labels)} if class_names is None else dict(enumerate(class_names))
    if unnamed := sorted(labels - names.keys()):
        raise ValueError(f"label {unnamed[0]} has no name: class_names has {len(names)}; give a name for every label")
    if len(set(names.values())) < len(names):
        raise ValueError(f"class_names={list(names.values())}: a name occurs twice; give every label its own")
    return [{"id": label, "name": name} for label, name in names.items()]
