from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from semidetr_hf.data.sources import open_source
from semidetr_hf.data.yolo import YoloSource, label_path

LINE = "1 0.5 0.5 0.5 0.25\n"  # on a picture of 40x32: 10, 12 to 30, 20


@pytest.fixture
def write_yolo(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes pictures of 40x32 with their label files, and a data.yaml with these values."""

    def write(labels: dict[str, str | None], **values: Any) -> Path:
        for name, text in labels.items():
            picture = tmp_path / name
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 32)).save(picture)
            if text is not None:
                file = label_path(picture)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
        content = {"train": "images", "names": ["cat", "dog"]} | values
        path = tmp_path / "data.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return write


Writer = Callable[..., Path]


def test_images_boxes_and_classes(write_yolo: Writer, tmp_path: Path) -> None:
    path = write_yolo({"images/b c.png": LINE, "images/sub/ä.PNG": LINE + "\n0 0.25 0.25 0.5 0.5\n"})
    source = open_source(path)
    assert isinstance(source, YoloSource) and source.image_ids == ["images/b c.png", "images/sub/ä.PNG"]
    assert source.category_ids == (0, 1) and source.category_names == ("cat", "dog")
    assert source.class_counts == (1, 2)
    # center 20, 16, size 20 x 8
    assert source[0].boxes_xyxy.tolist() == [[10, 12, 30, 20]] and source[0].class_labels.tolist() == [1]
    assert source[1].boxes_xyxy.tolist() == [[10, 12, 30, 20], [0, 0, 20, 16]]
    assert source.path(1) == tmp_path / "images" / "sub" / "ä.PNG"
    assert source.image_size(0) == (32, 40)


def test_images_without_objects(write_yolo: Writer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        source = open_source(write_yolo({"images/a.png": LINE, "images/b.png": "", "images/c.png": None}))
    assert len(source) == 3 and source.num_boxes == 1
    assert [len(source[index].boxes_xyxy) for index in range(3)] == [1, 0, 0]
    assert "1 images have no label file" in caplog.text


@pytest.mark.parametrize("names", [{4: "cat", 1: "dog"}, {"4": "cat", "1": "dog"}])
def test_classes_with_gaps_keep_their_numbers(write_yolo: Writer, names: dict) -> None:
    source = open_source(write_yolo({"images/a.png": LINE + "4 .5 .5 .1 .1"}, names=names))
    assert source.category_ids == (1, 4) and source.category_names == ("dog", "cat")
    assert source[0].class_labels.tolist() == [0, 1]


def test_a_file_of_ids_beside_the_yaml_gives_others(write_yolo: Writer, tmp_path: Path) -> None:
    path = write_yolo({"images/a.png": LINE})
    (tmp_path / "category_ids.json").write_text('{"dog": 7, "cat": 90}')
    source = open_source(path)
    assert source.category_ids == (7, 90) and source.category_names == ("dog", "cat")
    assert source.coco_ground_truth()["annotations"][0]["category_id"] == 7
    (tmp_path / "category_ids.json").write_text('{"dog": 7, "emu": 90}')
    with pytest.raises(ValueError, match=r"category_ids\.json: lists other names than its data set, 'cat'"):
        open_source(path)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"train": "images/train"}, ["images/train/a.png"]),
        ({"train": ["images/val", "images/train"]}, ["images/val/b.png", "images/train/a.png"]),
        ({"train": "list.txt"}, ["images/val/b.png", "images/train/a.png"]),
        ({"path": "images", "train": "train"}, ["train/a.png"]),
        ({"train": "../images/train"}, ["images/train/a.png"]),  # as Roboflow exports it
    ],
)
def test_the_ways_to_name_images(write_yolo: Writer, tmp_path: Path, values: dict, found: list[str]) -> None:
    path = write_yolo({"images/train/a.png": LINE, "images/val/b.png": LINE}, **values)
    (tmp_path / "list.txt").write_text("./images/val/b.png\nimages/train/a.png\n")
    source = open_source(path)
    assert source.image_ids == found and source.num_boxes == len(found)


def test_a_list_may_lie_elsewhere_and_start_at_the_root(write_yolo: Writer, tmp_path: Path) -> None:
    path = write_yolo({"images/a.png": LINE}, train="lists/x.txt")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "x.txt").write_text(f"images/a.png\n{tmp_path}/images/a.png\n")
    with pytest.raises(ValueError, match=r"image id 'images/a\.png' occurs twice"):
        open_source(path)
    (tmp_path / "lists" / "x.txt").write_text("images/a.png\n")
    assert open_source(path).num_boxes == 1


def test_the_key_is_that_of_the_use_unless_it_is_named(write_yolo: Writer, tmp_path: Path) -> None:
    keys = {key: f"images/{key}" for key in ("train", "val", "test")}
    path = write_yolo({f"{folder}/{key}.png": LINE for key, folder in keys.items()}, **keys)
    assert open_source(path).image_ids == ["images/train/train.png"]
    assert open_source(path, part="val").image_ids == ["images/val/val.png"]
    assert open_source(f"{path}:test").image_ids == ["images/test/test.png"]
    assert open_source(tmp_path).image_ids == ["images/train/train.png"]  # the folder of the yaml
    assert open_source(f"{tmp_path}:test", labeled=False).image_ids == ["images/test/test.png"]
    with pytest.raises(ValueError, match=r"data\.yaml: has no images 'tset'; there are: test, train, val"):
        open_source(f"{path}:tset")


@pytest.mark.parametrize(
    ("line", "box", "note"),
    [
        ("0 0.25 0.5 0.5 0.5 0.75 1", [10, 16, 30, 32], "polygons"),  # corners (.25, .5), (.5, .5), (.75, 1)
        ("0 0.5 0.5 0.5 0.5 0.9", [10, 8, 30, 24], "confidence"),
    ],
)
def test_polygons_become_boxes_and_confidences_are_left_out(
    write_yolo: Writer, caplog: pytest.LogCaptureFixture, line: str, box: list[float], note: str
) -> None:
    with caplog.at_level("INFO"):
        source = open_source(write_yolo({"images/a.png": line}))
    assert source[0].boxes_xyxy.tolist() == [box] and note in caplog.text


def test_of_poses_the_box_is_taken(write_yolo: Writer) -> None:
    source = open_source(write_yolo({"images/a.png": LINE.strip() + " 0.1 0.2 0.3 0.4"}, kpt_shape=[2, 2]))
    assert source[0].boxes_xyxy.tolist() == [[10, 12, 30, 20]]


def test_turned_pictures_are_measured_upright(write_yolo: Writer, tmp_path: Path) -> None:
    path = write_yolo({"images/a.png": LINE})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 32)).save(tmp_path / "images" / "a.png", exif=exif)
    # now 32 x 40
    source = open_source(path)
    assert source[0].image.size == (32, 40) and source[0].boxes_xyxy.tolist() == [[8, 15, 24, 25]]


def test_unlabeled_images_need_neither_names_nor_labels(write_yolo: Writer) -> None:
    source = open_source(write_yolo({"images/a.png": "no box", "images/b.png": None}, names=None), labeled=False)
    assert len(source) == 2 and source.num_boxes == 0 and source[0].boxes_xyxy.shape == (0, 4)


def test_boxes_of_a_broken_picture_are_left_out(
    write_yolo: Writer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_yolo({"images/a.png": LINE, "images/b.png": LINE})
    (tmp_path / "images" / "b.png").write_bytes(b"broken")
    with caplog.at_level("INFO"):
        assert open_source(path).num_boxes == 1
    assert "1 images with boxes cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0 0.5 0.5 x 0.5", "is '0 0.5 0.5 x 0.5'; write a class and four numbers"),
        ("2 0.5 0.5 0.5 0.5", "has the class 2, which names of the yaml does not list"),
        ("0.5 0.5 0.5 0.5 0.5", "has the class 0.5; write the number"),
        ("inf 0.5 0.5 0.5 0.5", "has the class inf; write the number"),
        ("0 20 16 20 8", "has 20; write shares of the image from 0 to 1, not pixels"),
        ("0 nan 0.5 0.5 0.5", "has nan; write shares"),
        ("0 0.5 0.5 -0.5 0.5", "has width -0.5 and height 0.5; write center"),
        ("0 0.5 0.5", "has 2 numbers behind the class"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "has 7 numbers behind the class"),
    ],
)
def test_wrong_lines_are_named(write_yolo: Writer, tmp_path: Path, line: str, complaint: str) -> None:
    path = write_yolo({"images/a.png": LINE, "images/b.png": f"{LINE}{line}\n{LINE}"})
    with pytest.raises(ValueError) as caught:
        open_source(path)
    assert str(caught.value).startswith(f"{tmp_path / 'labels' / 'b.txt'}: line 2 {complaint}")


def test_the_number_of_complaints_is_told(write_yolo: Writer, tmp_path: Path) -> None:
    path = write_yolo({"images/a.png": "x\ny\n", "images/b.png": LINE})
    (tmp_path / "labels" / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.txt: line 1 .*and 2 more complaints; semidetr validate lists all"):
        open_source(path)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"names": None}, "names=None; list the name of every class"),
        ({"names": {"a": "cat"}}, "names has the key 'a'; number the classes from 0"),
        ({"nc": 5}, "nc=5 but names lists 2 classes"),
        ({"train": None}, "has no images 'train'; there are: none"),
        ({"train": "nowhere"}, "train='nowhere': there is no .*nowhere; correct train"),
        ({"train": "data.yaml"}, "train names .*; give a folder of images, or a .txt"),
        ({"path": "nowhere"}, "path='nowhere': no such folder .*; correct it"),
    ],
)
def test_a_wrong_yaml_is_named(write_yolo: Writer, values: dict[str, Any], complaint: str) -> None:
    path = write_yolo({"images/a.png": LINE}, **values)
    with pytest.raises((ValueError, FileNotFoundError), match=complaint) as caught:
        open_source(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_what_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.yaml"
    with pytest.raises(FileNotFoundError, match=r"data\.yaml: no such YOLO data\.yaml"):
        open_source(path)
    for text, complaint in (("a: [", "not a YAML file"), ("- a", "holds a list")):
        path.write_text(text)
        with pytest.raises(ValueError, match=complaint) as caught:
            open_source(path)
        assert "\n" not in str(caught.value)


def test_a_data_set_without_one_label_file_is_a_wrong_path(write_yolo: Writer) -> None:
    with pytest.raises(ValueError, match=r"not one of its 1 images has a label file, the first should have .*a\.txt"):
        open_source(write_yolo({"images/a.png": None}))


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("d/images/train/a b.jpg", "d/labels/train/a b.txt"),
        ("images/images/a.jpg", "images/labels/a.txt"),
        ("photos/a.x.jpg", "photos/a.x.txt"),
        ("photos/images.jpg", "photos/images.txt"),
    ],
)
def test_where_labels_are(image: str, labels: str) -> None:
    assert label_path(Path(image)) == Path(labels)
