import json
from pathlib import Path

from noise_sets import coco_content, write_set

from semidetr_hf.data.data_check import check_data


def test_the_report_holds_everything_as_json(tmp_path: Path) -> None:
    labeled, val = write_set(tmp_path / "labeled"), write_set(tmp_path / "val", seed=1)
    (labeled.parent / "2.png").write_bytes((val.parent / "1.png").read_bytes())
    content = json.loads(json.dumps(check_data(labeled, val=val).to_dict()))
    assert (content["num_errors"], content["num_warnings"]) == (1, 0)
    assert content["counts"] == [{"severity": "error", "role": "labeled", "kind": "leak", "count": 1}]
    assert content["problems"][0]["image_id"] == 2 and content["problems"][0]["fix"] == "drop_image"
    summary = content["sets"][0]
    assert (summary["role"], summary["num_images"], summary["num_boxes"]) == ("labeled", 3, 12)
    assert summary["classes"][0] == {"id": 3, "name": "cat", "num_boxes": 6}
    assert set(content["versions"]) == {"python", "semidetr-hf", "pillow", "numpy"}


def test_the_text_shows_five_of_a_kind_and_every_way_out(tmp_path: Path) -> None:
    content = coco_content()
    for annotation in content["annotations"][:7]:
        annotation["category_id"] = 99
    content["annotations"][8]["bbox"] = [1, 2, -3, 4]
    content["annotations"].insert(0, content["annotations"][9] | {"id": 50, "bbox": [90, 2, 3, 4]})
    content["images"][0]["file_name"] = "\x1b[31m\n.png"
    text = check_data(write_set(tmp_path / "a", content)).to_text()
    assert text.count("has category_id=99") == 5 and "  ... and 2 more\n  -> add or correct it" in text
    assert "error     labeled  unknown_category      7             7" in text
    assert r"\x1b[31m\n.png: image 1: the image file does not exist" in text and "\x1b" not in text
    assert text.index("error: degenerate") < text.index("warning: outside")
    assert text.endswith("9 errors, 3 warnings: correct the files or run with --fix")
