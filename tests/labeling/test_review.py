import pytest
from labeled_images import detected

from semidetr_hf.labeling.labels import label_by_threshold
from semidetr_hf.labeling.review import Review, ReviewConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": ()}, r"formats=\[\]: give one or more of coco, yolo, label-studio"),
        ({"formats": ("coco", "voc")}, r"formats=\['coco', 'voc'\]: give one or more of"),
        ({"threshold": 0.01}, "threshold=0.01: must be from min_score=0.05 to 1"),
        ({"precision": 0.0}, "precision=0.0: must be above 0 and below 1"),
        ({"top": 0}, "top=0: must be 1 or more"),
        ({"sheet": -1}, "sheet=-1: must be 0 or more"),
        ({"batch_size": 0}, "batch_size=0: must be 1 or more"),
    ],
)
def test_wrong_settings(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        ReviewConfig(**settings)


def test_the_text_says_how_many_labels_there_are_and_what_is_missing(tmp_path) -> None:
    box = (0.0, 0.0, 9.0, 9.0)
    images = label_by_threshold([detected("a", (1, 0.5, box), (1, 0.75, box)), detected("b")], 0.5)
    review = Review(
        folder=tmp_path,
        model="x",
        categories={3: "cat", 7: "dog"},
        images=images[:1],
        num_readable=2,
        unreadable=[(f"{number}.png", f"{number}.png: broken") for number in range(7)],
        threshold=0.5,
        calibration=None,
        warnings=(),
    )
    lines = review.to_text().splitlines()
    assert [line.split() for line in lines[1:3]] == [["cat", "0.500", "0"], ["dog", "0.500", "2"]]
    assert lines[3:9] == [
        *(f"cannot be read: {number}.png: broken" for number in range(5)),
        "and 2 more that cannot be read, all in review.json",
    ]
    assert lines[9] == f"2 labels on 1 images, the most uncertain of 2; 7 unreadable; in {tmp_path}"
