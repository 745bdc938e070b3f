import json
from pathlib import Path

import pytest
from PIL import Image

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.report import datasets
from semidetr_hf.report.datasets import BOX_EDGES, box_size_names, describe_sets
from semidetr_hf.training.setup import Sources


@pytest.fixture
def source(tmp_path: Path) -> CocoSource:
    sizes = [(40, 30), (100, 50), (200, 200)]
    images = []
    for number, (width, height) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
    boxes = [(0, [0, 0, 10, 10]), (1, [0, 0, 32, 32]), (2, [0, 0, 40, 40]), (2, [0, 0, 100, 100])]
    annotations = [
        {"id": number, "image_id": image, "category_id": 1, "bbox": box}
        for number, (image, box) in enumerate(boxes, 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return CocoSource(tmp_path / "a.json")


def test_images_boxes_and_sizes_are_counted(source: CocoSource) -> None:
    (labeled,) = describe_sets(Sources(labeled=source, unlabeled=None, val=None))
    assert (labeled.role, labeled.num_images, labeled.num_boxes) == ("labeled", 3, 4)
    assert labeled.image_sizes == "40 x 30 to 200 x 200, median 100 x 50"
    # Edges of 10, 32, 40 and 100 pixels: 32 is no small box.
    assert labeled.box_shares == [0.25, 0, 0.5, 0, 0.25, 0, 0]
    assert len(box_size_names()) == len(BOX_EDGES)
    assert (
        box_size_names()[0] == "below 16" and box_size_names()[2] == "32 to 64" and box_size_names()[-1] == "from 384"
    )


def test_boxes_of_unlabeled_images_are_not_looked_at(source: CocoSource) -> None:
    _, unlabeled, val = describe_sets(Sources(labeled=source, unlabeled=source, val=source))
    assert unlabeled.num_boxes is None and unlabeled.box_shares == []
    assert val.num_boxes == 4


def test_of_a_large_folder_a_sample_is_measured(
    tmp_path: Path, source: CocoSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        (tmp_path / "more").mkdir(exist_ok=True)
        Image.new("RGB", (20, 10)).save(tmp_path / "more" / f"{number}.png")
    monkeypatch.setattr(datasets, "MAX_HEADERS", 4)
    folder = FolderSource(tmp_path / "more")
    assert describe_sets(Sources(labeled=source, unlabeled=folder, val=None))[1].image_sizes == "all 20 x 10"
    (tmp_path / "more" / "0.png").write_bytes(b"no picture")
    assert describe_sets(Sources(labeled=source, unlabeled=folder, val=None))[1].num_images == 6
