import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from semidetr_hf.visualization import (
    GROUND_TRUTH_COLOR,
    PREDICTION_COLOR,
    contact_sheet,
    detection_sheet,
    draw_boxes,
    enlarge_small,
    training_curves,
)

NO_BOXES = torch.zeros(0, 4)


def gray(width: int = 96, height: int = 96, level: int = 128) -> Image.Image:
    return Image.new("RGB", (width, height), (level, level, level))


def pixels_of(image: Image.Image, color: str) -> np.ndarray:
    """Return the (y, x) positions of pixels of a color."""
    wanted = np.array(Image.new("RGB", (1, 1), color))[0, 0]
    return np.argwhere((np.array(image.convert("RGB")) == wanted).all(axis=-1))


def test_a_box_is_drawn_where_it_is_and_the_input_stays() -> None:
    image = gray(200, 100)
    drawn = draw_boxes(image, torch.tensor([[50.0, 40.0, 120.0, 80.0]]), [""], color="#ff0000")
    found = pixels_of(drawn, "#ff0000")
    below_text = found[found[:, 0] >= 40]
    assert below_text.min(axis=0).tolist() == [40, 50]
    assert below_text.max(axis=0).tolist() == [80, 120]
    assert drawn.getpixel((85, 60)) == (128, 128, 128)
    assert ImageChops.difference(image, gray(200, 100)).getbbox() is None


def test_no_boxes_change_no_pixel() -> None:
    image = gray()
    drawn = draw_boxes(image, NO_BOXES, [], torch.zeros(0))
    assert drawn is not image
    assert ImageChops.difference(image, drawn).getbbox() is None


def test_text_stays_within_the_image() -> None:
    # At the right and upper edges; a text outside would leave only the outline in this color.
    box = torch.tensor([[90.0, 0.0, 95.0, 95.0]])
    without = len(pixels_of(draw_boxes(gray(), box, [""]), PREDICTION_COLOR))
    with_text = len(pixels_of(draw_boxes(gray(), box, ["nine"], torch.tensor([0.5])), PREDICTION_COLOR))
    assert with_text > without + 100


def test_gray_and_palette_images_are_drawn_in_color() -> None:
    for mode in ("L", "P", "RGBA"):
        drawn = draw_boxes(gray().convert(mode), torch.tensor([[5.0, 30.0, 50.0, 60.0]]), ["a"])
        assert drawn.mode == "RGB"
        assert len(pixels_of(drawn, PREDICTION_COLOR)) > 100


@pytest.mark.parametrize(("labels", "scores"), [([], None), (["a", "b"], None), (["a"], torch.zeros(2))])
def test_draw_boxes_needs_one_text_per_box(labels: list[str], scores: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match="1 boxes came with"):
        draw_boxes(gray(), torch.tensor([[0.0, 0.0, 5.0, 5.0]]), labels, scores)


def test_contact_sheet_places_pictures_row_by_row() -> None:
    levels = [10, 60, 110]
    sheet = contact_sheet([gray(40, 30, level) for level in levels], columns=2)
    # Two columns of 40, two rows of 30, gaps of 8: 3 * 8 + 2 * 40 and 3 * 8 + 2 * 30.
    assert sheet.size == (104, 84)
    centers = [(28, 23), (76, 23), (28, 61)]
    assert [sheet.getpixel(center) for center in centers] == [(level,) * 3 for level in levels]
    assert sheet.getpixel((76, 61)) == (255, 255, 255)


def test_contact_sheet_makes_room_for_titles_and_sizes() -> None:
    images = [gray(40, 30, 0), gray(20, 60, 0)]
    titled = contact_sheet(images, columns=5, titles=["one", "two"])
    plain = contact_sheet(images, columns=5)
    assert titled.width == plain.width == 3 * 8 + 2 * 40
    assert titled.height > plain.height


def test_contact_sheet_refuses_what_makes_no_sheet() -> None:
    with pytest.raises(ValueError, match="0 images in 2 columns"):
        contact_sheet([], columns=2)
    with pytest.raises(ValueError, match="1 images in 0 columns"):
        contact_sheet([gray()], columns=0)
    with pytest.raises(ValueError, match="1 images came with 2 titles"):
        contact_sheet([gray()], columns=1, titles=["a", "b"])


def test_detection_sheet_shows_both_sides_enlarged(tmp_path) -> None:
    box = torch.tensor([[10.0, 20.0, 60.0, 80.0]])
    truth = {"boxes": box, "labels": torch.tensor([1])}
    found = {**truth, "scores": torch.tensor([0.9])}
    nothing = {"boxes": NO_BOXES, "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    path = tmp_path / "sheets" / "val.png"
    detection_sheet([gray(), gray()], [found, nothing], [truth, truth], ["zero", "one"], path)
    sheet = Image.open(path)
    # Four cells of 96 * 3 = 288 in one row.
    assert sheet.width == 4 * 288 + 5 * 8
    green, red = pixels_of(sheet, GROUND_TRUTH_COLOR), pixels_of(sheet, PREDICTION_COLOR)
    cells = [range(8 + column * 296, 8 + column * 296 + 288) for column in range(4)]
    assert {next(i for i, cell in enumerate(cells) if x in cell) for x in green[:, 1]} == {0, 2}
    assert {next(i for i, cell in enumerate(cells) if x in cell) for x in red[:, 1]} == {1}


def test_detection_sheet_needs_one_entry_per_image(tmp_path) -> None:
    with pytest.raises(ValueError, match="1 images came with 0 predictions and 1 ground truths"):
        detection_sheet([gray()], [], [{"boxes": NO_BOXES, "labels": NO_BOXES}], [], tmp_path / "a.png")


def test_training_curves_draw_every_run(tmp_path) -> None:
    supervised = [{"step": 10, "loss": 3.0, "lr": 1.0}, {"step": 20, "loss": 2.0, "ap": 0.1}]
    semi = [{"step": 20, "student_ap": 0.1, "teacher": {"ap": 0.2, "ap_small": None}}, {"step": 30, "ap": None}]
    training_curves({"supervised": supervised, "semi": semi}, tmp_path / "both.png")
    training_curves({"supervised": supervised, "semi": []}, tmp_path / "one.png")
    both, one = (Image.open(tmp_path / name).convert("RGB") for name in ("both.png", "one.png"))
    first, second = "#1f77b4", "#ff7f0e"
    right = both.width // 2
    assert len(pixels_of(both, first)) > 100
    orange = pixels_of(both, second)
    assert len(orange) > 50
    # The second run has no loss: nothing of it is in the left panel.
    assert orange[:, 1].min() > right
    assert len(pixels_of(one, second)) == 0


def test_training_curves_need_something_to_draw(tmp_path) -> None:
    with pytest.raises(ValueError, match="no row of the logs a, b has `loss`"):
        training_curves({"a": [], "b": [{"step": 1, "lr": 0.1}]}, tmp_path / "curves.png")


@pytest.mark.parametrize(("size", "factor"), [((96, 96), 3), ((255, 400), 2), ((256, 300), 1), ((900, 600), 1)])
def test_small_images_grow_by_a_whole_number(size, factor) -> None:
    # 96 * 3 = 288 is the first multiple of at least 256.
    image, grown_by = enlarge_small(Image.new("RGB", size))
    assert (grown_by, image.size) == (factor, (size[0] * factor, size[1] * factor))
