import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_inputs.folders import coco
from PIL import Image
from tiny import tiny_model

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.images import Sample
from semidetr_hf.prediction import (
    FilesSource,
    open_images,
    predict,
    predict_to_folder,
    usable_device,
)


@pytest.fixture(scope="module")
def detector() -> tuple[Any, SemiDetrImageProcessor]:
    return tiny_model(category_ids=[10, 20, 30, 40, 50]), SemiDetrImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 96}
    )


def sample_of(image: Image.Image, name: str = "a") -> Sample:
    return Sample(
        image=image,
        boxes_xyxy=torch.zeros((0, 4)),
        class_labels=torch.zeros((0,), dtype=torch.int64),
        image_id=name,
        file_name=name,
    )


def test_detections_are_those_of_the_model_in_the_order_of_the_images(detector) -> None:
    model, processor = detector
    images = [Image.radial_gradient("L").resize(size).convert("RGB") for size in ((64, 64), (96, 64), (64, 90))]
    samples = [sample_of(image, str(i)) for i, image in enumerate(images)]
    found = list(predict(model, processor, samples, threshold=0.0))
    assert [prediction.sample for prediction in found] == samples
    for image, prediction in zip(images, found, strict=True):
        with torch.no_grad():
            outputs = model(**processor(images=image, return_tensors="pt"))
        sizes = [(image.height, image.width)]
        [expected] = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        assert torch.equal(prediction.scores, expected["scores"])
        assert torch.equal(prediction.class_labels, expected["labels"])
        # The same boxes, but for what is outside the image.
        limit = torch.tensor([image.width, image.height] * 2)
        assert torch.equal(prediction.boxes_xyxy, expected["boxes"].clamp(min=0).minimum(limit))


def test_a_batch_of_equal_sizes_finds_what_single_images_have(detector) -> None:
    samples = [sample_of(Image.radial_gradient("L").rotate(30 * i).resize((64, 80)).convert("RGB")) for i in range(3)]
    singly, together = (list(predict(*detector, samples, threshold=0.0, batch_size=size)) for size in (1, 2))
    for one, other in zip(singly, together, strict=True):
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)


def test_no_more_than_a_batch_is_read_ahead(detector) -> None:
    read = []

    def samples():
        for i in range(6):
            read.append(i)
            yield sample_of(Image.new("RGB", (64, 64)))

    predictions = predict(*detector, samples(), batch_size=2)
    next(predictions)
    assert read == [0, 1]


@pytest.mark.parametrize(("threshold", "batch_size"), [(1.5, 1), (float("nan"), 1), (0.3, 0)])
def test_wrong_arguments_are_named(detector, threshold: float, batch_size: int) -> None:
    culprit = "batch_size=0" if batch_size < 1 else f"threshold={threshold}"
    with pytest.raises(ValueError, match=culprit):
        next(predict(*detector, [], threshold=threshold, batch_size=batch_size))


def test_images_are_opened_from_files_folders_patterns_and_json(tmp_path: Path) -> None:
    labels = coco(tmp_path / "set")
    (tmp_path / "more" / "deep").mkdir(parents=True)
    shutil.copy(tmp_path / "set" / "1.png", tmp_path / "more" / "deep" / "x y.PNG")
    opened = open_images([tmp_path / "set" / "1.png", tmp_path / "more" / "**" / "*.PNG", labels, tmp_path / "more"])
    assert [type(images).__name__ for images in opened] == ["FilesSource", "CocoSource", "FolderSource"]
    assert list(opened[0].image_ids) == ["set/1.png", "more/deep/x y.PNG"]
    assert [len(images) for images in opened] == [2, 3, 1]
    # A file that is given twice is one image.
    assert len(open_images([tmp_path / "set" / "1.png", tmp_path / "set" / "?.png"])[0]) == 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [([], "no images given"), (["gone.jpg"], "gone.jpg: no such file"), (["gone/*.jpg"], "no file fits this pattern")],
)
def test_what_is_not_there_is_named(inputs: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("*", r"\*")):
        open_images(inputs)


def test_the_json_can_be_scored_against_the_data_set(detector, tmp_path: Path) -> None:
    source = CocoSource(coco(tmp_path / "set"))
    count = predict_to_folder(*detector, [source], tmp_path / "out", threshold=0.0, progress=False)
    detections = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert count[:3] == (3, 0, len(detections))
    assert count.images_per_second > 0
    assert [found["image_id"] for found in detections] == sorted(found["image_id"] for found in detections)
    assert {found["image_id"] for found in detections} == {1, 2, 3}
    assert {found["category_id"] for found in detections} <= {10, 20, 30, 40, 50}
    assert set(detections[0]) == {"image_id", "category_id", "bbox", "score", "file_name"}


def test_several_inputs_are_told_apart_by_their_names(detector, tmp_path: Path) -> None:
    for folder in ("a/photos", "b/photos"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / folder / "1.png")
    images = open_images([tmp_path / "a/photos", tmp_path / "b/photos"])
    predict_to_folder(*detector, images, tmp_path / "out", threshold=0.0, progress=False)
    detections = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {found["image_id"] for found in detections} == {"photos/1.png", "photos-2/1.png"}
    assert (tmp_path / "out" / "photos-2" / "1.png.png").is_file()


def test_no_picture_leaves_the_output_folder(detector, tmp_path: Path) -> None:
    for name in ("up.png", "set/1.png", "absolute.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    names = ["../up.png", str(tmp_path / "absolute.png")]
    content = {
        "images": [{"id": i, "file_name": name, "width": 64, "height": 64} for i, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [],
    }
    (tmp_path / "set" / "labels.json").write_text(json.dumps(content))
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "out"
    predict_to_folder(*detector, open_images([tmp_path / "set" / "labels.json"]), out, progress=False)
    new = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert len(new) == 3
    assert all(out in path.parents for path in new)
    assert out / "_" / "up.png.png" in new


def test_unreadable_images_are_told_and_counted(detector, tmp_path: Path, capsys) -> None:
    coco(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no picture")
    source = FilesSource([tmp_path / f"{i}.png" for i in (1, 2, 3)])
    assert predict_to_folder(*detector, [source], tmp_path / "out", progress=False)[:2] == (2, 1)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("skipped: ") and "2.png" in line


def test_nothing_is_left_where_no_image_can_be_read(detector, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="set: none of the 1 images can be read"):
        predict_to_folder(*detector, open_images([tmp_path / "set"]), tmp_path / "out", progress=False)
    assert list((tmp_path / "out").iterdir()) == []


def interrupted(detector, folder: Path, **options: Any) -> Path:
    """Predict on two good images, then on a third whose reading fails as if the machine had; return the output."""
    coco(folder / "set")
    source = FilesSource([folder / "set" / f"{i}.png" for i in (1, 2, 3)])
    source.path = lambda index: [folder / "set" / "1.png", folder / "set" / "2.png"][index]  # type: ignore[method-assign]
    with pytest.raises(IndexError):
        predict_to_folder(*detector, [source], folder / "out", threshold=0.0, progress=False, **options)
    assert not (folder / "out" / "predictions.json").exists()
    return folder / "out"


def go_on(detector, folder: Path, **options: Any) -> Any:
    given = {"threshold": 0.0, "resume": True, "progress": False} | options
    source = FilesSource([folder / "set" / f"{i}.png" for i in (1, 2, 3)])
    return predict_to_folder(*detector, [source], folder / "out", **given)


@pytest.mark.parametrize("format", ["coco", "parquet"])
def test_an_interrupted_run_goes_on_and_counts_all_images(detector, tmp_path: Path, monkeypatch, format: str) -> None:
    interrupted(detector, tmp_path)
    read: list[int] = []
    original = FilesSource.path
    monkeypatch.setattr(FilesSource, "path", lambda source, index: read.append(index) or original(source, index))
    count = go_on(detector, tmp_path, format=format)
    assert read == [2]
    assert count[:3] == (3, 0, 180)
    (tmp_path / "out" / "predictions.partial.jsonl").write_text("")
    assert go_on(detector, tmp_path)[:3] == count[:3]
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [each["image_id"] for each in found] == [f"{i}.png" for i in (1, 2, 3) for _ in range(60)]
    if format == "parquet":
        rows = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
        assert [row["image_id"] for row in rows] == ["1.png", "2.png", "3.png"]
        assert [score for row in rows for score in row["objects"]["score"]] == pytest.approx(
            [each["score"] for each in found]
        )
        assert set(rows[0]["objects"]["category"]) <= {f"class {i}" for i in range(5)}


def test_what_an_interrupted_run_left_is_not_thrown_away(detector, tmp_path: Path) -> None:
    interrupted(detector, tmp_path)
    with pytest.raises(FileExistsError, match=r"predictions\.partial\.jsonl: .*--resume"):
        go_on(detector, tmp_path, resume=False)
    assert go_on(detector, tmp_path)[:3] == (3, 0, 180)


@pytest.mark.parametrize(
    ("changed", "culprit"),
    [({"threshold": 0.5}, "threshold"), ({"batch_size": 2}, "batch size"), ({"draw": False}, "drawing")],
)
def test_a_run_does_not_go_on_with_other_settings(detector, tmp_path: Path, changed: dict, culprit: str) -> None:
    interrupted(detector, tmp_path)
    with pytest.raises(ValueError, match=f"had another {culprit} "):
        go_on(detector, tmp_path, **changed)


def test_a_run_does_not_go_on_with_another_detector_or_other_images(detector, tmp_path: Path) -> None:
    interrupted(detector, tmp_path)
    with pytest.raises(ValueError, match="had another detector "):
        go_on((tiny_model(seed=1, category_ids=[10, 20, 30, 40, 50]), detector[1]), tmp_path)
    source = FilesSource([tmp_path / "set" / f"{i}.png" for i in (1, 2)])
    options = {"threshold": 0.0, "progress": False, "resume": True}
    with pytest.raises(ValueError, match="had another list of images "):
        predict_to_folder(*detector, [source], tmp_path / "out", **options)


def test_devices_are_tried() -> None:
    assert usable_device("cpu") == torch.device("cpu")
    assert usable_device(None).type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(ValueError, match="'cuda:99' cannot be used as a device .*give another"):
        usable_device("cuda:99")
