import numpy as np
import pytest
from labeled_images import detected

from semidetr_hf.labeling.judging import judge


class Truth:
    """Boxes by hand: image id, category id, xywh, crowd or not; the categories are 7 and 3, in this order."""

    image_ids = ("a", 5)
    category_ids = (3, 7)

    def __init__(self, *rows) -> None:
        self.rows = rows

    def coco_ground_truth(self):
        return {
            "images": [{"id": image_id} for image_id in self.image_ids],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
            "annotations": [
                {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": 100, "iscrowd": crowd}
                for number, (image, category, box, crowd) in enumerate(rows_of(self.rows), start=1)
            ],
        }


def rows_of(rows):
    return [(*row, 0) if len(row) == 3 else row for row in rows]


def test_of_two_on_one_object_only_the_better_one_is_right() -> None:
    truth = Truth(("a", 7, [0, 0, 10, 10]), ("a", 3, [40, 0, 10, 10]), (5, 7, [0, 0, 10, 10]))
    images = [
        # 6 of 10 rows in common: IoU 0.6. The second is a duplicate; the third lies on the cat and is called a dog.
        detected("a", (0, 0.9, (0, 0, 10, 6)), (0, 0.8, (0, 0, 10, 10)), (0, 0.7, (40, 0, 50, 10))),
        # 4 of 10: too little in common.
        detected(5, (0, 0.6, (0, 0, 10, 4))),
    ]
    judged = judge(images, truth, category_ids=(7, 3))
    assert judged.scores == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert judged.right.tolist() == [True, False, False, False]
    assert judged.labels.tolist() == [0, 0, 0, 0] and judged.images.tolist() == [0, 0, 0, 1]
    assert judged.num_objects == (2, 1)
    assert judge(images, truth, (7, 3), iou_threshold=0.4).right.tolist() == [True, False, False, True]


def test_what_lies_on_a_crowd_does_not_count() -> None:
    truth = Truth(("a", 7, [0, 0, 50, 50], 1), ("a", 7, [60, 0, 10, 10]))
    images = [detected("a", (0, 0.9, (5, 5, 15, 15)), (0, 0.8, (20, 20, 30, 30)), (0, 0.7, (60, 0, 70, 10)))]
    judged = judge(images, truth, category_ids=(7, 3))
    assert judged.scores == pytest.approx([0.7]) and judged.right.tolist() == [True]
    assert judged.num_objects == (1, 0)


def test_nothing_found_is_nothing_judged() -> None:
    judged = judge([detected("a")], Truth(("a", 7, [0, 0, 10, 10])), category_ids=(7, 3))
    assert judged.scores.shape == judged.right.shape == (0,) and judged.right.dtype == np.bool_
    assert judged.num_objects == (1, 0)


def test_without_boxes_nothing_can_be_judged() -> None:
    with pytest.raises(ValueError, match="none of the 1 labeled images has a box"):
        judge([detected("a")], Truth((5, 7, [0, 0, 10, 10])), category_ids=(7, 3))
    with pytest.raises(ValueError, match="iou_threshold=0: must be above 0"):
        judge([detected("a")], Truth(("a", 7, [0, 0, 10, 10])), category_ids=(7, 3), iou_threshold=0)
