import pytest
import torch
from labeled_images import detected
from PIL import Image

from semidetr_hf.data.sources import open_source
from semidetr_hf.labeling.labels import label_by_threshold
from semidetr_hf.labeling.yolo import write_yolo

CATEGORIES = {7: "dog: big", 30: "Kätzchen"}


@pytest.fixture
def photos(tmp_path):
    files = [tmp_path / name for name in ("one.two.png", "b.png")]
    for number, file in enumerate(files):
        Image.new("RGB", (100, 50), (number, 0, 0)).save(file)
    return files


def test_it_is_read_back_as_labeled_data(tmp_path, photos) -> None:
    box = (10.0, 5.0, 43.3, 25.0)
    images = label_by_threshold([detected("a"), detected("b", (1, 0.5, box))], 0.5)
    write_yolo(tmp_path / "yolo", images, photos, CATEGORIES, confidence=False, progress=False)
    source = open_source(tmp_path / "yolo" / "data.yaml")
    # Alphabetical order, that of the ranks.
    assert source.image_ids == ["images/000001_one.two.png", "images/000002_b.png"]
    assert source.category_names == ("dog: big", "Kätzchen") and source.category_ids == (7, 30)
    assert source[0].class_labels.tolist() == [1]
    torch.testing.assert_close(source[0].boxes_xyxy, torch.tensor([box]), atol=1e-4, rtol=0)
    assert source[0].image.getpixel((0, 0)) == (0, 0, 0) and len(source[1].boxes_xyxy) == 0


def test_confidences_are_the_sixth_number(tmp_path, photos) -> None:
    images = label_by_threshold([detected("a", (1, 0.5, (10, 5, 40, 25))), detected("b")], 0.5)
    write_yolo(tmp_path / "yolo", images, photos, CATEGORIES, confidence=True, progress=False)
    # Center (25, 15), size 30 x 20, of 100 x 50.
    line = (tmp_path / "yolo" / "labels" / "000001_one.two.txt").read_text()
    assert [float(number) for number in line.split()] == [1, 0.25, 0.3, 0.3, 0.4, 0.5]
    assert (tmp_path / "yolo" / "labels" / "000002_b.txt").read_text() == ""
