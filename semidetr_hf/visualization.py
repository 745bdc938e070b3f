"""Pictures of boxes and of training runs, written as PNG without a display.

Needs matplotlib (the `viz` extra) for `detection_sheet` and `training_curves` only.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GROUND_TRUTH_COLOR = "#00b140"
PREDICTION_COLOR = "#e6194b"
_LINE_STYLES = ("-", "--", ":", "-.")


def draw_boxes(
    image: Image.Image,
    boxes_xyxy: Tensor,
    labels: Sequence[str],
    scores: Tensor | None = None,
    color: str | tuple[int, int, int] = PREDICTION_COLOR,
) -> Image.Image:
    """Return a copy of an image with boxes and their names drawn on it.

    Args:
        image: any mode; the copy is RGB.
        boxes_xyxy: (G, 4) float, pixels of `image`.
        labels: G texts, one per box.
        scores: (G,) float, written behind the text, or None.
        color: of lines and of the ground behind the text, as PIL understands it.

    Raises:
        ValueError: if the numbers of boxes, labels and scores differ.
    """
    if len(labels) != len(boxes_xyxy) or (scores is not None and len(scores) != len(boxes_xyxy)):
        counts = f"{len(labels)} labels and {'no' if scores is None else len(scores)} scores"
        raise ValueError(f"{len(boxes_xyxy)} boxes came with {counts}; give one per box")
    canvas = image.convert("RGB")
    if canvas is image:
        canvas = image.copy()
    draw = ImageDraw.Draw(canvas)
    line = max(1, round(min(canvas.size) / 160))
    font = ImageFont.load_default(size=max(10, min(canvas.size) / 22))
    for index, (x1, y1, x2, y2) in enumerate(boxes_xyxy.tolist()):
        draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=color, width=line)
        text = labels[index] if scores is None else f"{labels[index]}: {float(scores[index]):.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        # Above the box; inside it where there is no room above, and moved left where the text would leave the image.
        x = max(0.0, min(x1, canvas.width - right - 2))
        y = y1 - bottom - 2 if y1 - bottom - 2 >= 0 else y1 + line
        draw.rectangle((x, y + top - 1, x + right + 2, y + bottom + 1), fill=color)
        draw.text((x + 1, y), text, fill="white", font=font)
    return canvas


def enlarge_small(image: Image.Image, short_edge: int = 256) -> tuple[Image.Image, int]:
    """Return an image large enough for readable labels, and the whole number by which it and its boxes grow.

    Args:
        image: one whose shorter edge is at least `short_edge` pixels comes back as it is, with factor 1.
        short_edge: smallest shorter edge of the result, in pixels.
    """
    factor = max(1, math.ceil(short_edge / min(image.size)))
    if factor == 1:
        return image, 1
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC), factor


def contact_sheet(images: Sequence[Image.Image], columns: int, titles: Sequence[str] | None = None) -> Image.Image:
    """Return one picture of many, row by row on white, each with its title above it.

    Args:
        images: one or more; cells are as large as the largest of them, smaller ones are centered.
        columns: pictures per row.
        titles: one per image, or None.

    Raises:
        ValueError: if there is no image, `columns` is below 1, or the number of titles differs from that of images.
    """
    if not images or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns make no sheet: both must be at least 1")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(images)} images came with {len(titles)} titles; give one per image")
    gap = 8
    width, height = max(image.width for image in images), max(image.height for image in images)
    font = ImageFont.load_default(size=max(11, min(width, height) / 18))
    title_height = 0 if titles is None else math.ceil(font.getbbox("Ag")[3]) + 4
    cell_width, cell_height = width + gap, height + title_height + gap
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * cell_width + gap, rows * cell_height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        x = gap + (index % columns) * cell_width
        y = gap + (index // columns) * cell_height
        if titles is not None:
            draw.text((x, y), titles[index], fill="black", font=font)
        sheet.paste(
            image.convert("RGB"), (x + (width - image.width) // 2, y + title_height + (height - image.height) // 2)
        )
    return sheet


def detection_sheet(
    images: Sequence[Image.Image],
    predictions: Sequence[Mapping[str, Tensor]],
    ground_truth: Sequence[Mapping[str, Tensor]],
    category_names: Sequence[str],
    path: str | Path,
) -> None:
    """Write a PNG with two pictures per image: its labeled boxes on the left, the detected ones on the right.

    Small images are enlarged to a shorter edge of at least 256 pixels.

    Args:
        images: one or more.
        predictions: per image `boxes` (N, 4) xyxy in pixels, `labels` (N,) and `scores` (N,), already thresholded.
        ground_truth: per image `boxes` (G, 4) xyxy in pixels and `labels` (G,).
        category_names: name of every class label.
        path: the PNG to write; its folder is made.

    Raises:
        ValueError: if there is no image, or not one entry of predictions and ground truth per image.
    """
    if not len(images) == len(predictions) == len(ground_truth):
        raise ValueError(
            f"{len(images)} images came with {len(predictions)} predictions and {len(ground_truth)} ground truths; "
            "give one of each per image"
        )
    cells, titles = [], []
    for image, predicted, true in zip(images, predictions, ground_truth, strict=True):
        for boxes, color, title in (
            (true, GROUND_TRUTH_COLOR, "labeled"),
            (predicted, PREDICTION_COLOR, "detected"),
        ):
            enlarged, factor = enlarge_small(image)
            names = [category_names[label] for label in boxes["labels"].tolist()]
            cells.append(draw_boxes(enlarged, boxes["boxes"].float() * factor, names, boxes.get("scores"), color))
            titles.append(f"{title}: {len(names)}")
    sheet = contact_sheet(cells, columns=2 * min(3, len(images)), titles=titles)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")


def training_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Write a PNG with two panels over the steps: total loss on the left, AP of every evaluated model on the right.

    Args:
        logs: name of a run -> rows of its log. A row has `step`, and `loss`, or keys that end in `ap` (`ap`,
            `student_ap`, `teacher_ap`; also nested, as in `{"teacher": {"ap": 0.1}}`), or both; None is left out.
        path: the PNG to write; its folder is made.

    Raises:
        ValueError: if no row of any run has a loss or an AP.
    """
    from matplotlib.figure import Figure

    curves = {name: _curves_of(rows) for name, rows in logs.items()}
    if not any(curves.values()):
        raise ValueError(f"no row of the logs {', '.join(logs) or '(none)'} has `loss` or a key that ends in `ap`")
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    loss_panel, ap_panel = figure.subplots(1, 2)
    for run, (name, of_run) in enumerate(curves.items()):
        styles = dict(zip((key for key in of_run if key != "loss"), itertools.cycle(_LINE_STYLES), strict=False))
        for key, points in of_run.items():
            panel = loss_panel if key == "loss" else ap_panel
            label = name if key in ("loss", "ap") else f"{name}: {key.removesuffix('ap').strip('_./') or key}"
            steps, values = zip(*points, strict=True)
            marker = "" if key == "loss" else "o"
            panel.plot(steps, values, styles.get(key, "-"), color=f"C{run}", label=label, marker=marker)
    for panel, ylabel in ((loss_panel, "loss (mean since the last row)"), (ap_panel, "AP at IoU 0.50:0.95")):
        panel.set(xlabel="optimizer steps", ylabel=ylabel)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend()
    ap_panel.set_ylim(bottom=0)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")


def _curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return key -> (step, value) points of the loss and of every AP in the rows of one run."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        values = dict(row)
        for name, nested in row.items():
            if isinstance(nested, Mapping):
                values.update({f"{name}.{key}": value for key, value in nested.items()})
        for key, value in values.items():
            is_ap = key == "ap" or key.endswith(("_ap", ".ap", "/ap"))
            if (key == "loss" or is_ap) and value is not None:
                curves.setdefault(key, []).append((row["step"], value))
    return curves
