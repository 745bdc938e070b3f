import io
import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.images import EXIF_ORIENTATION, UnreadableImageError
from semidetr_hf.model import SemiDetrImageProcessor

Writer = Callable[..., Path]


def test_sparse_category_ids_become_contiguous_labels(write_coco: Writer) -> None:
    source = CocoSource(write_coco())
    assert source.category_ids == (3, 7) and source.category_names == ("cat", "dog")
    assert source.class_counts == (1, 1) and source.num_boxes == 2 and source.image_ids == [1, 2]
    sample = source[0]
    # [10, 5, 20, 10] is 10..30 by 5..15; dog has the larger id and therefore label 1
    assert sample.boxes_xyxy.tolist() == [[10, 5, 30, 15], [0, 0, 4, 4]]
    assert sample.class_labels.tolist() == [1, 0]
    assert sample.boxes_xyxy.dtype == torch.float32 and sample.class_labels.dtype == torch.int64
    assert sample.image_id == 1 and sample.file_name == "a.png" and sample.image.size == (40, 30)


def test_images_without_boxes_are_kept(write_coco: Writer) -> None:
    sample = CocoSource(write_coco())[1]
    assert sample.boxes_xyxy.shape == (0, 4) and sample.class_labels.shape == (0,)


def test_boxes_are_filtered_clipped_and_counted(write_coco: Writer) -> None:
    box = {"image_id": 1, "category_id": 3}
    source = CocoSource(
        write_coco(
            annotations=[
                box | {"id": 1, "bbox": [35, -5, 10, 10]},  # clipped to 35..40 by 0..5
                box | {"id": 2, "bbox": [50, 5, 10, 10]},  # outside
                box | {"id": 3, "bbox": [5, 5, 0.5, 10]},  # narrow
                box | {"id": 4, "bbox": [5, 5, 9, 9], "iscrowd": 1},
                box | {"id": 5, "bbox": [5, 5, 9, 9], "ignore": 1},
            ]
        )
    )
    assert source[0].boxes_xyxy.tolist() == [[35, 0, 40, 5]]
    assert source.num_boxes == 1
    assert source.dropped == {"outside the image or smaller than one pixel": 2, "crowd": 1, "ignored": 1}


def test_a_size_that_the_json_does_not_give_is_taken_from_the_picture(write_coco: Writer) -> None:
    source = CocoSource(
        write_coco(
            images=[{"id": 1, "file_name": "a.png"}],
            annotations=[{"id": 1, "image_id": 1, "category_id": 3, "bbox": [35, 5, 10, 10]}],
        )
    )
    assert source[0].boxes_xyxy.tolist() == [[35, 5, 40, 15]]


def test_a_picture_of_another_size_is_refused(write_coco: Writer, tmp_path: Path) -> None:
    source = CocoSource(write_coco())
    Image.new("RGB", (80, 60)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match="80x60.*40x30"):
        source[0]


@pytest.mark.parametrize(("width", "height", "size"), [(20, 40, (20, 40)), (40, 20, (40, 20)), (None, None, (20, 40))])
def test_orientation_follows_the_frame_of_the_boxes(
    write_coco: Writer, tmp_path: Path, width: int | None, height: int | None, size: tuple[int, int]
) -> None:
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[EXIF_ORIENTATION] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    entry = {"id": 1, "file_name": "turned.jpg", "width": width, "height": height}
    assert CocoSource(write_coco(images=[entry], annotations=[], pictures=False))[0].image.size == size


def test_a_category_without_boxes_is_one_warning(write_coco: Writer, caplog: pytest.LogCaptureFixture) -> None:
    path = write_coco(categories=[{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 8, "name": "emu"}])
    with caplog.at_level(logging.WARNING):
        CocoSource(path)
    assert len(caplog.messages) == 1 and "emu" in caplog.messages[0] and str(path) in caplog.messages[0]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        CocoSource(path, labeled=False)
    assert caplog.messages == []


def test_any_file_name(write_coco: Writer) -> None:
    names = ["sub folder/ünï cödé.png", "日本/写真 1.png"]
    images = [{"id": place, "file_name": name} for place, name in enumerate(names)]
    source = CocoSource(write_coco(images=images, annotations=[]))
    assert [source[place].file_name for place in range(2)] == names


def test_subset_keeps_labels_and_file_order(write_coco: Writer) -> None:
    path = write_coco()
    source = CocoSource(path)
    part = source.subset([2])
    assert part.image_ids == [2] and part.class_counts == (0, 0) and part.category_ids == (3, 7)
    assert source.image_ids == [1, 2] and source.num_boxes == 2  # the whole one is untouched
    assert CocoSource(path, image_ids=[2, 1]).image_ids == [1, 2]
    for image_ids, complaint in [([], "empty list"), ([1, 1], "1 was given twice"), ([2, 9], "1 of .* first is 9")]:
        with pytest.raises(ValueError, match=complaint):
            source.subset(image_ids)


def test_ground_truth_is_what_pycocotools_scores_perfectly(write_coco: Writer) -> None:
    path = write_coco(
        annotations=[
            {"id": 0, "image_id": 1, "category_id": 7, "bbox": [10, 5, 20, 10]},
            {"id": 1, "image_id": 2, "category_id": 3, "bbox": [0, 0, 8, 8], "area": 60},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [20, 10, 15, 15], "iscrowd": 1},
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 9, 9], "ignore": 1},
        ]
    )
    source = CocoSource(path)
    truth = source.coco_ground_truth()
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3, 4]
    assert [entry["area"] for entry in truth["annotations"]] == [200, 60, 225, 81]
    assert [entry["iscrowd"] for entry in truth["annotations"]] == [0, 0, 1, 1]
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    coco = COCO()
    coco.dataset = truth
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
        detections = coco.loadRes(
            [
                {
                    "image_id": entry["image_id"],
                    "category_id": entry["category_id"],
                    "bbox": entry["bbox"],
                    "score": 0.9,
                }
                for entry in truth["annotations"]
            ]
        )
        evaluation = COCOeval(coco, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)  # the crowd and the ignored box cost nothing
    part = source.subset([1]).coco_ground_truth()
    assert [entry["id"] for entry in part["images"]] == [1] and len(part["annotations"]) == 1


@pytest.mark.parametrize(
    ("json_folder", "pictures"), [(".", "images"), ("annotations", "."), ("annotations", "images"), (".", "photos")]
)
def test_pictures_are_found_around_the_json(
    write_coco: Writer, tmp_path: Path, json_folder: str, pictures: str
) -> None:
    path = write_coco(folder=tmp_path / "set" / json_folder, pictures=False)
    folder = tmp_path / "set" / pictures
    folder.mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(folder / name)
    assert CocoSource(path)[0].image.size == (40, 30)


def test_the_folder_that_the_json_is_named_after_comes_first(write_coco: Writer, tmp_path: Path) -> None:
    root = tmp_path / "coco"
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(root / split / "a.png")
    named = write_coco("instances_val2017", root / "annotations", pictures=False)
    assert CocoSource(named).path(0) == root / "val2017" / "a.png"
    with pytest.raises(ValueError, match="several folders .*train2017.*val2017.*image_folder"):
        CocoSource(write_coco("labels", root, pictures=False))


def test_equal_file_names_of_a_neighbor_are_not_taken(write_coco: Writer, tmp_path: Path) -> None:
    write_coco(folder=tmp_path / "another")
    with pytest.raises(FileNotFoundError, match="give image_folder"):
        CocoSource(write_coco(folder=tmp_path / "mine", pictures=False))


def test_missing_pictures_name_the_places_tried(write_coco: Writer, tmp_path: Path) -> None:
    path = write_coco(folder=tmp_path / "annotations", pictures=False)
    with pytest.raises(FileNotFoundError, match=rf"'a\.png'.*{tmp_path / 'annotations' / 'images'}.*image_folder"):
        CocoSource(path)
    with pytest.raises(FileNotFoundError, match="given folder"):
        CocoSource(path, tmp_path)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40)])
def test_a_picture_with_an_orientation_is_seen_by_the_detector_as_it_was_annotated(
    write_coco: Writer, width: int, height: int
) -> None:
    # The way of `evaluate`, for annotations of the picture as stored and as turned.
    images = [{"id": 1, "file_name": "a.jpg", "width": width, "height": height}]
    path = write_coco(images=images, annotations=[], pictures=False)
    stored = Image.new("RGB", (40, 20))
    exif = stored.getexif()
    exif[EXIF_ORIENTATION] = 6
    stored.save(path.parent / "a.jpg", exif=exif)
    image = CocoSource(path)[0].image
    assert image.size == (width, height)
    processor = SemiDetrImageProcessor(do_resize=False)
    assert processor(images=[image], return_tensors="pt").pixel_values.shape == (1, 3, height, width)


def test_a_file_name_that_no_disk_can_hold_is_an_image_that_is_not_there(write_coco: Callable[..., Path]) -> None:
    path = write_coco(pictures=False, images=[{"id": 1, "file_name": "x" * 300}], annotations=[])
    for folder in (None, path.parent):
        with pytest.raises(FileNotFoundError, match="labels.json: its image 'xxx"):
            CocoSource(path, folder)
