import io
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from trap_set import ORIENTATION

from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.hub import HubSource
from semidetr_hf.data.images import PackedImage, UnreadableImageError
from semidetr_hf.data.sources import open_source

BOXES = [[10, 5, 20, 10], [0, 0, 4, 4]]  # on a picture of 40x30


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library copies what it reads into a cache, here one of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def picture(seed: int = 0, *, mode: str = "RGB", orientation: int = 1, size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG", exif=exif)
    return file.getvalue()


def row(seed: int = 0, *, objects: Any = None, **columns: Any) -> dict[str, Any]:
    objects = {"bbox": BOXES, "category": [1, 0]} if objects is None else objects
    return {"image": {"bytes": picture(seed), "path": None}, "objects": objects, **columns}


def features(category: Any = None, **columns: Any) -> datasets.Features:
    """Those of cppe-5."""
    category = datasets.ClassLabel(names=["mask", "glove"]) if category is None else category
    objects = datasets.Sequence({"bbox": datasets.Sequence(datasets.Value("float64"), length=4), "category": category})
    return datasets.Features({"image": datasets.Image(), "objects": objects, **columns})


def save(folder: Path, rows: list[dict[str, Any]], kinds: datasets.Features | None = None) -> Path:
    datasets.Dataset.from_list(rows, features=kinds or features()).save_to_disk(str(folder))
    return folder


def boxes(source: Any, index: int = 0) -> list[tuple[int, list[float]]]:
    sample = source[index]
    named = [source.category_names[label] for label in sample.class_labels]
    return sorted(zip(named, sample.boxes_xyxy.tolist(), strict=True))


FOUND = [("glove", [10, 5, 30, 15]), ("mask", [0, 0, 4, 4])]


# ---- Where it comes from


def test_a_saved_folder(tmp_path: Path) -> None:
    source = open_source(save(tmp_path / "set", [row(), row(1, objects={"bbox": [], "category": []})]))
    assert isinstance(source, HubSource) and source.image_ids == [0, 1] and source.class_counts == (1, 1)
    assert source.category_names == ("mask", "glove") and source.category_ids == (0, 1)
    assert boxes(source) == FOUND and boxes(source, 1) == []
    assert source[0].image.tobytes() == Image.open(io.BytesIO(picture())).tobytes()
    assert source.subset([1]).path(0).place.endswith("set row 1")


def test_splits_are_chosen_by_what_the_images_are_for_or_by_name(tmp_path: Path) -> None:
    parts = {"train": 1, "validation": 2, "test": 3}
    tables = {
        name: datasets.Dataset.from_list([row(seed) for seed in range(count)], features=features())
        for name, count in parts.items()
    }
    folder = tmp_path / "set"
    datasets.DatasetDict(tables).save_to_disk(str(folder))
    assert len(open_source(folder)) == 1
    assert len(open_source(folder, part="val")) == 2
    assert len(open_source(f"{folder}:test")) == 3
    assert open_source(f"{folder}:test").name == "set test"
    assert len(open_source(f"{folder}:test", labeled=False)) == 3
    with pytest.raises(ValueError, match="has no split 'tset'; there are: train, validation, test"):
        open_source(f"{folder}:tset")


def test_which_split_is_meant_is_asked_where_none_fits(tmp_path: Path) -> None:
    tables = {name: datasets.Dataset.from_list([row()], features=features()) for name in ("train", "test")}
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match="has the splits train, test; choose one as .*set:train"):
        open_source(tmp_path / "set", part="val")


@pytest.mark.parametrize("place", ["some.parquet", "folder/some.parquet", "folder/data/train-0.parquet"])
def test_parquet_files(tmp_path: Path, place: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list([row(), row(1)], features=features()).to_parquet(str(file))
    source = open_source(tmp_path / "folder" if place.startswith("folder") else file)
    assert len(source) == 2 and boxes(source) == FOUND


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_an_image_folder_with_metadata(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    names = ["b c.png", "sub/ä.png"]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(picture(seed))
    objects = {"bbox": BOXES, "category": ["glove", "mask"]}
    if suffix == "jsonl":
        lines = [json.dumps({"file_name": name, "objects": objects}) for name in names]
    else:
        cell = json.dumps(objects).replace('"', '""')
        lines = ["file_name,objects", *(f'{name},"{cell}"' for name in names)]
    (folder / f"metadata.{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = open_source(folder)
    assert isinstance(source, HubSource) and source.category_ids == (1, 2)
    assert {source.path(index) for index in range(2)} == {folder / name for name in names}
    assert boxes(source) == FOUND
    assert isinstance(open_source(folder, labeled=False), FolderSource)


def test_an_id_of_the_hub_without_network_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What the variable HF_HUB_OFFLINE sets; without it the client would try for half a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="no such file or folder, and the Hub cannot be reached") as caught:
        open_source("nobody-at-all/no-such-set:test")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("nobody-at-all/no-such-set: ")
    assert [record.name for record in caplog.records] == ["semidetr_hf.data.hub"]
    assert logging.getLogger("huggingface_hub").level != logging.CRITICAL


def test_an_id_of_the_hub_is_no_path_that_is_mistyped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    with pytest.raises(FileNotFoundError, match="my/photos: no such file or folder"):
        open_source("my/photos")


# ---- What the rows hold


def as_records(objects: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(objects, values, strict=True)) for values in zip(*objects.values(), strict=True)]


@pytest.mark.parametrize("bbox", ["bbox", "boxes"])
@pytest.mark.parametrize("category", ["category", "label", "category_id"])
@pytest.mark.parametrize("form", [dict, as_records])
def test_names_and_forms_of_the_columns(tmp_path: Path, bbox: str, category: str, form: Callable) -> None:
    objects = form({bbox: BOXES, category: ["glove", "mask"]})
    rows = [{"image": {"bytes": picture(), "path": "x.png"}, "objects": objects}]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "set"))
    assert boxes(open_source(tmp_path / "set")) == FOUND


@pytest.mark.parametrize(
    ("bbox_format", "bbox"),
    [
        ("xywh", [10, 5, 20, 10]),
        ("xyxy", [10, 5, 30, 15]),
        ("xywh_relative", [10 / 40, 5 / 30, 20 / 40, 10 / 30]),
        ("xyxy_relative", [10 / 40, 5 / 30, 30 / 40, 15 / 30]),
        ("cxcywh_relative", [20 / 40, 10 / 30, 20 / 40, 10 / 30]),
    ],
)
@pytest.mark.parametrize("tells_size", [True, False])
def test_every_format_of_boxes(tmp_path: Path, bbox_format: Any, bbox: list[float], tells_size: bool) -> None:
    size = {"width": 40, "height": 30} if tells_size else {}
    kinds = features(**{name: datasets.Value("int32") for name in size})
    folder = save(tmp_path / "set", [row(objects={"bbox": [bbox], "category": [1]}, **size)], kinds)
    [(name, found)] = boxes(open_source(folder, bbox_format=bbox_format))
    assert name == "glove" and found == pytest.approx([10, 5, 30, 15], abs=1e-5)


def test_bare_numbers_are_ids_and_plain_names_take_given_ones(tmp_path: Path) -> None:
    numbers = save(
        tmp_path / "a", [row(objects={"bbox": BOXES, "category": [90, 3]})], features(datasets.Value("int64"))
    )
    assert open_source(numbers).category_ids == (3, 90) and open_source(numbers).category_names == ("3", "90")
    names = [row(objects={"bbox": BOXES, "category": ["glove", "mask"]})]
    named = save(tmp_path / "b", names, features(datasets.Value("string")))
    source = open_source(named, categories={4: "boot", 7: "glove", 9: "mask"})
    assert source.category_ids == (4, 7, 9) and source.class_counts == (0, 1, 1) and boxes(source) == FOUND


def test_crowds_areas_and_ids_are_kept(tmp_path: Path) -> None:
    kinds = features(image_id=datasets.Value("string"))
    inner = {"area": datasets.Value("float64"), "iscrowd": datasets.Value("bool")}
    kinds["objects"] = datasets.Sequence(
        {"bbox": datasets.Sequence(datasets.Value("float64"), length=4), "category": datasets.Value("string"), **inner}
    )
    objects = {"bbox": BOXES, "category": ["a", "b"], "area": [7.5, 16.0], "iscrowd": [False, True]}
    source = open_source(save(tmp_path / "set", [row(objects=objects, image_id="x-1")], kinds))
    first, second = source.coco_ground_truth()["annotations"]
    assert (first["area"], first["iscrowd"], second["iscrowd"]) == (7.5, 0, 1)
    assert source.image_ids == ["x-1"] and source.class_counts == (1, 0)


def test_pictures_without_files_are_turned_and_converted(tmp_path: Path) -> None:
    contents = [picture(mode="CMYK"), picture(orientation=6), picture(mode="L"), picture(mode="P")]
    rows = [row() | {"image": {"bytes": content, "path": "x"}} for content in contents]
    source = open_source(save(tmp_path / "set", rows))
    assert [source[index].image.size for index in range(4)] == [(40, 30), (30, 40), (40, 30), (40, 30)]
    assert {source[index].image.mode for index in range(4)} == {"RGB"}
    assert source.image_size(1) == (40, 30)


def test_pictures_are_read_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = PackedImage.__init__
    broken = row() | {"image": {"bytes": b"broken", "path": "x.png"}}
    source = open_source(save(tmp_path / "set", [row(), broken, row() | {"image": None}]))
    monkeypatch.setattr(PackedImage, "__init__", lambda self, *a: reads.append(a[0]) or read(self, *a))
    copy = pickle.loads(pickle.dumps(source))  # as loader workers get it
    assert copy[0].image.size == (40, 30) and len(reads) == 1
    for index, reason in (
        (1, r"set row 1 \(x\.png\): not a readable image"),
        (2, "set row 2: .*the row has no image"),
    ):
        with pytest.raises(UnreadableImageError, match=reason):
            copy[index]


# ---- What is refused


@pytest.mark.parametrize(
    ("rows", "kinds", "complaint"),
    [
        (
            [{"image": None}],
            datasets.Features({"image": datasets.Image()}),
            "has no column 'objects', only image; give",
        ),
        ([{"a": 1}], datasets.Features({"a": datasets.Value("int64")}), "has no column 'image', only a; rename one"),
        (
            [{"image": 1, "objects": []}],
            datasets.Features({"image": datasets.Value("int64"), "objects": datasets.List(datasets.Value("int64"))}),
            "the column 'image' holds Value.'int64'., no images; cast it",
        ),
        (
            [row(objects={"bbox": [[1, 2, -3, 4]], "category": [0]})],
            None,
            r"object 1 of row 0 has bbox=.*negative size",
        ),
        (
            [row(objects={"bbox": [[1, 2, float("nan"), 4]], "category": [0]})],
            None,
            r"object 1 of row 0 has bbox=.*nan",
        ),
        ([row(), row(objects={"bbox": BOXES, "category": [0, -1]})], None, "object 2 of row 1 has category_id=-1"),
        ([row(objects={"bbox": BOXES, "category": [0]})], None, "row 0 has objects of different numbers"),
        (
            [row(image_id=5), row(image_id=5)],
            features(image_id=datasets.Value("int64")),
            "image id 5 occurs twice; give every image its own",
        ),
    ],
)
def test_wrong_tables_are_refused_in_one_line(
    tmp_path: Path, rows: list[dict[str, Any]], kinds: datasets.Features | None, complaint: str
) -> None:
    folder = save(tmp_path / "set", rows, kinds)
    with pytest.raises(ValueError, match=complaint) as caught:
        open_source(folder)
    assert str(caught.value).startswith(f"{folder}: ") and "\n" not in str(caught.value)


def test_broken_files_and_wrong_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"x\.parquet: cannot be read as a data set"):
        open_source(tmp_path / "x.parquet")
    with pytest.raises(FileNotFoundError, match=r"y\.parquet: no such parquet file"):
        open_source(tmp_path / "y.parquet")
    with pytest.raises(ValueError, match="bbox_format='yolo': must be one of xywh, xyxy"):
        HubSource(tmp_path, bbox_format="yolo")  # type: ignore[arg-type]
    folder = save(tmp_path / "set", [row()])
    with pytest.raises(ValueError, match="says itself where its images are; image_folder='x' only fits"):
        open_source(folder, "x")
