from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from semidetr_hf import visualization
from semidetr_hf.visualization import (
    GROUND_TRUTH_COLOR,
    PREDICTION_COLOR,
    ablation_bars,
    contact_sheet,
    cost_histograms,
    detection_sheet,
    draw_boxes,
    enlarge_small,
    nms_curves,
    quality_curves,
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


# ---- Curves of pseudo-labels and of NMS, cost histograms, ablation bars


@pytest.fixture
def drawn(monkeypatch, tmp_path) -> Callable[..., Any]:
    """Return a function that draws a picture, looks whether it is a PNG, and gives back its matplotlib figure."""
    figures: list[Any] = []
    write = visualization._write
    monkeypatch.setattr(visualization, "_write", lambda figure, path: (figures.append(figure), write(figure, path)))

    def draw(function: Callable[..., None], content: Any, **options: Any) -> Any:
        path = tmp_path / "new folder" / "picture.png"
        function(content, path, **options)
        assert Image.open(path).format == "PNG"
        return figures[-1]

    return draw


def lines_of(panel: Any) -> list[tuple[str, str, list[float], list[float]]]:
    """Return color, style, x and y of every line of a panel."""
    return [
        (line.get_color(), line.get_linestyle(), list(line.get_xdata()), list(line.get_ydata()))
        for line in panel.lines
    ]


def legend_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_quality_has_a_color_per_run_and_a_style_per_set(drawn) -> None:
    first = [
        {"step": 10, "quality/confident_precision": 0.5, "quality/mined_recall": None, "loss": 1.0},
        {"step": 20, "quality/confident_precision": 0.75, "quality/confident_mean_iou": 0.8},
    ]
    second = [{"step": 30, "loss": 2.0}, {"step": 40, "quality/candidates_recall": 0.25}]
    figure = drawn(quality_curves, {"a": first, "b": second})
    precision, recall, mean_iou = figure.axes
    assert lines_of(precision) == [("C0", "-", [10, 20], [0.5, 0.75])]
    assert lines_of(recall) == [("C1", ":", [40], [0.25])]
    assert lines_of(mean_iou) == [("C0", "-", [20], [0.8])]
    # Nothing was mined: that style needs no explanation.
    assert legend_of(figure) == ["a", "b", "candidates", "confident"]
    with pytest.raises(ValueError, match="no row of the logs a has a key like quality/mined_precision"):
        drawn(quality_curves, {"a": [{"step": 1, "quality/mined_recall": None}]})


def test_nms_curves_are_solid_without_and_dashed_with_it(drawn) -> None:
    first = [
        {"step": 10, "student/ap": 0.1, "student/ap_nms": 0.2, "teacher/ap": 0.3, "teacher/ap_nms": 0.4},
        {"step": 20, "student/ap": 0.5, "student/ap_nms": None, "teacher/ap": 0.6},
    ]
    second = [{"step": 10, "teacher/ap": 0.7}]
    figure = drawn(nms_curves, {"a": first, "b": second}, switch_steps={"b": 15})
    student, teacher = figure.axes
    assert (student.get_title(), teacher.get_title()) == ("student", "teacher")
    switch = ("C1", ":", [15, 15], [0, 1])
    assert lines_of(student) == [("C0", "-", [10, 20], [0.1, 0.5]), ("C0", "--", [10], [0.2]), switch]
    assert lines_of(teacher) == [
        ("C0", "-", [10, 20], [0.3, 0.6]),
        ("C0", "--", [10], [0.4]),
        ("C1", "-", [10], [0.7]),
        switch,
    ]
    assert legend_of(figure)[-1] == "one-to-one from here on"
    assert legend_of(drawn(nms_curves, {"a": first})) == ["a", "without NMS", "with NMS"]


def test_nms_curves_need_an_ap_with_nms_and_known_runs(drawn) -> None:
    with pytest.raises(ValueError, match="no row of the logs a has a key like teacher/ap_nms"):
        drawn(nms_curves, {"a": [{"step": 1, "teacher/ap": 0.1, "teacher/ap_nms": None}]})
    with pytest.raises(ValueError, match=r"switch_steps names \['c'\], which are not among the logs a"):
        drawn(nms_curves, {"a": [{"step": 1, "teacher/ap_nms": 0.1}]}, switch_steps={"c": 3})


def cost_row(step: int, costs: list[float], **content: Any) -> dict[str, Any]:
    unknown = dict.fromkeys(("correct", "weights", "means", "variances", "threshold"))
    return {"step": step, "costs": costs, **unknown, **content}


def test_costs_are_stacked_by_whether_they_are_right(drawn) -> None:
    row = cost_row(7, [0.0, 0.0, 0.0, 3.0], correct=[True, True, False, False], threshold=1.5)
    (panel,) = drawn(cost_histograms, [row]).axes
    heights = [[bar.get_height() for bar in bars] for bars in panel.containers]
    # Thirty bars from 0 to 3: two right ones and a wrong one in the first, a wrong one in the last.
    assert [len(bars) for bars in heights] == [30, 30]
    assert ((heights[0][0], heights[0][-1]), (heights[1][0], heights[1][-1])) == ((2, 0), (1, 1))
    assert panel.containers[1][0].get_y() == 2
    assert lines_of(panel) == [("black", "--", [1.5, 1.5], [0, 1])]
    assert panel.get_title() == "step 7: 4 costs"


def test_the_mixture_is_scaled_to_counts(drawn) -> None:
    # 200 costs from 0 to 3 in bars of 0.1. A normal with deviation 0.5 has 0.07966 of its mass within 0.05 of its
    # mean (2 * Phi(0.1) - 1): 200 * 0.75 * 0.07966 = 11.95 in the bar around it. One narrower than the bar has all
    # of its mass there: 200 * 0.25 = 50.
    costs = np.linspace(0, 3, 200).tolist()
    mixture = {"weights": [0.75, 0.25], "means": [1.0, 2.0], "variances": [0.25, 1e-5]}
    (panel,) = drawn(cost_histograms, [cost_row(1, costs, **mixture)]).axes
    (_, _, x, total), (_, _, _, cheap), (_, _, _, costly) = lines_of(panel)
    assert max(cheap) == pytest.approx(11.95, abs=0.01)
    assert x[int(np.argmax(cheap))] == pytest.approx(1.0, abs=0.01)
    assert max(costly) == pytest.approx(50.0, abs=0.01)
    np.testing.assert_allclose(total, np.add(cheap, costly))


def test_at_most_six_steps_are_chosen_evenly(drawn) -> None:
    # Eleven rows with costs, 0 to 10; every second one is drawn, ends included. Rows without costs do not count.
    rows = [{"step": 99, "loss": 1.0}, cost_row(98, [])] + [cost_row(step, [1.0, 2.0]) for step in range(11)]
    figure = drawn(cost_histograms, rows)
    assert [panel.get_title() for panel in figure.axes] == [f"step {step}: 2 costs" for step in range(0, 11, 2)]
    assert legend_of(figure) == ["unknown"]
    assert len(drawn(cost_histograms, [cost_row(0, [1.0, 1.0])]).axes) == 1


def test_cost_histograms_refuse_nothing_and_unequal_numbers(drawn) -> None:
    with pytest.raises(ValueError, match="none of the 2 rows has `costs`"):
        drawn(cost_histograms, [{"step": 1}, cost_row(2, [])])
    with pytest.raises(ValueError, match="step 3: 2 costs came with 1 entries of `correct`"):
        drawn(cost_histograms, [cost_row(3, [1.0, 2.0], correct=[True])])


def test_ablation_bars_show_means_seeds_and_the_baseline(drawn) -> None:
    table = {"5 %": {"plain": [0.1, 0.2], "mining": [0.3, 0.3]}, "10 %": {"mining": [0.5], "all": [0.6]}}
    figure = drawn(ablation_bars, table, baseline="plain")
    (panel,) = figure.axes
    bars = {round(bar.get_x() + bar.get_width() / 2, 2): bar.get_height() for bar in panel.patches}
    # Three arms share a width of 0.84: their bars are at -0.28, 0 and 0.28 of a group; absent arms leave a gap.
    assert bars == {-0.28: pytest.approx(0.15), 0.0: pytest.approx(0.3), 1.0: 0.5, 1.28: 0.6}
    assert [y for _, _, _, y in lines_of(panel)] == [[0.1, 0.2], [0.3, 0.3], [0.5], [0.6]]
    assert [text.get_text() for text in panel.texts] == ["0.150", "0.300", "0.500", "0.600"]
    # The text stands above the best seed.
    assert [text.xy[1] for text in panel.texts] == [0.2, 0.3, 0.5, 0.6]
    (baseline,) = panel.collections
    assert {round(y, 6) for _, y in baseline.get_segments()[0]} == {0.15}
    assert [label.get_text() for label in panel.get_xticklabels()] == ["5 %", "10 %"]
    assert legend_of(figure) == ["plain", "mining", "all", "one seed", "mean of plain"]


def test_ablation_bars_need_the_baseline_and_a_seed(drawn) -> None:
    with pytest.raises(ValueError, match="baseline='none' is none of the arms plain, mining"):
        drawn(ablation_bars, {"5 %": {"plain": [0.1], "mining": [0.2]}}, baseline="none")
    with pytest.raises(ValueError, match=r"table\['5 %'\]\['mining'\] is empty"):
        drawn(ablation_bars, {"5 %": {"plain": [0.1], "mining": []}}, baseline="plain")


@pytest.mark.parametrize(("entries", "width"), [(1, 5), (7, 5), (7, 13), (20, 6)])
def test_a_legend_is_no_wider_than_its_figure(entries: int, width: int) -> None:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(width, 6), layout="constrained")
    figure.subplots()
    visualization._place_legend(figure, [Line2D([], [], label="costly component") for _ in range(entries)])
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert len(legend_of(figure)) == entries
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.width
    # All panels lie above it.
    assert figure.axes[0].get_tightbbox().y0 >= legend.y1
