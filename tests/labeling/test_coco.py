import csv
import json

import torch
from labeled_images import detected
from PIL import Image

from semidetr_hf.data.sources import open_source
from semidetr_hf.labeling.coco import write_coco, write_ranking
from semidetr_hf.labeling.labels import label_by_threshold

CATEGORIES = {7: "dog", 3: "cat"}


def test_it_is_read_back_as_labeled_data(tmp_path) -> None:
    Image.new("RGB", (100, 50)).save(tmp_path / "a b.png")
    Image.new("RGB", (100, 50)).save(tmp_path / "ä.png")
    images = label_by_threshold(
        [
            detected("ä"),
            detected(5, (0, 0.5, (10.25, 0, 20, 30.5)), (1, 0.75, (0, 0, 100, 50)), (0, 0.3, (0, 0, 9, 9))),
        ],
        0.5,
    )
    target = tmp_path / "review" / "labels.json"
    files = [tmp_path / "a b.png", tmp_path / "ä.png"]
    write_coco(target, images, files, CATEGORIES, start=target.parent, info={"description": "x"})
    source = open_source(target)
    assert source.image_ids == [5, "ä"] and source.category_names == ("cat", "dog")
    sample = source[0]
    # Class labels follow the ids: the dog, 7, is the second.
    assert sample.class_labels.tolist() == [1, 0]
    assert torch.equal(sample.boxes_xyxy, torch.tensor([[10.25, 0, 20, 30.5], [0, 0, 100, 50]]))
    assert len(source[1].boxes_xyxy) == 0
    content = json.loads(target.read_text(encoding="utf-8"))
    assert [image["file_name"] for image in content["images"]] == ["../a b.png", "../ä.png"]
    assert [round(image["uncertainty"], 4) for image in content["images"]] == [2.6926, 0]
    assert [row["score"] for row in content["annotations"]] == [0.5, 0.75]
    assert content["annotations"][0]["area"] == 9.75 * 30.5


def test_the_ranking_is_a_table_of_all_images(tmp_path) -> None:
    images = label_by_threshold([detected("sure"), detected("a,b", (0, 0.5, (0, 0, 9, 9)))], 0.5)
    write_ranking(tmp_path / "ranking.csv", images, [tmp_path / "x.png", tmp_path / "y.png"])
    rows = list(csv.DictReader((tmp_path / "ranking.csv").read_text().splitlines()))
    assert rows[0] == {
        "rank": "1",
        "image_id": "a,b",
        "file": str(tmp_path / "x.png"),
        "uncertainty_bits": "1.0000",
        "labels": "1",
        "lowest_score": "0.5000",
        "considered": "1",
    }
    assert rows[1]["image_id"] == "sure" and rows[1]["lowest_score"] == "" and rows[1]["labels"] == "0"
