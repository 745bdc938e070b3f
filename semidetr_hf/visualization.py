"""Pictures of boxes and of training runs, written as PNG without a display.

Pictures of boxes need pillow only; curves, histograms and bars need matplotlib (the `viz` extra).
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.special import ndtr
from torch import Tensor

GROUND_TRUTH_COLOR = "#00b140"
PREDICTION_COLOR = "#e6194b"
_LINE_STYLES = ("-", "--", ":", "-.")
# What a quality or NMS picture calls its curves -> their line styles.
_QUALITY_STYLES = {"candidates": ":", "confident": "-", "mined": "--"}
_NMS_STYLES = {"without NMS": "-", "with NMS": "--"}

Rows = Sequence[Mapping[str, Any]]


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


def training_curves(logs: Mapping[str, Rows], path: str | Path) -> None:
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
    _write(figure, path)


def _curves_of(rows: Rows) -> dict[str, list[tuple[int, float]]]:
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


def quality_curves(logs: Mapping[str, Rows], path: str | Path) -> None:
    """Write a PNG with the quality of pseudo-labels over the steps: a panel each for precision, recall and mean IoU.

    Args:
        logs: name of a run -> rows of its log. A row has `step` and any of `quality/<set>_precision`,
            `quality/<set>_recall` and `quality/<set>_mean_iou`, each from 0 to 1, where the set is `candidates`,
            `confident` or `mined`; other keys and None are left out.
        path: the PNG to write; its folder is made.

    Raises:
        ValueError: if no row of any run has such a key.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    drawn: set[str] = set()
    for panel, measure in zip(figure.subplots(1, 3, sharex=True), ("precision", "recall", "mean_iou"), strict=True):
        for (run, rows), (name, style) in itertools.product(enumerate(logs.values()), _QUALITY_STYLES.items()):
            if points := _points(rows, f"quality/{name}_{measure}"):
                panel.plot(*points, style, color=f"C{run}", marker=".")
                drawn.add(name)
        panel.set(title=measure.replace("_iou", " IoU of the right ones"), xlabel="optimizer steps")
        if measure != "mean_iou":  # whose values lie close together, above the threshold of a match
            panel.set_ylim(0, 1.02)
        panel.grid(alpha=0.3)
    if not drawn:
        raise ValueError(f"no row of the logs {', '.join(logs) or '(none)'} has a key like quality/mined_precision")
    _legend(figure, logs, {name: style for name, style in _QUALITY_STYLES.items() if name in drawn})
    _write(figure, path)


def nms_curves(logs: Mapping[str, Rows], path: str | Path, *, switch_steps: Mapping[str, int] | None = None) -> None:
    """Write a PNG with the AP with and without non-maximum suppression over the steps, one panel per network.

    Args:
        logs: name of a run -> rows of its log. A row has `step` and any of `<network>/ap` and `<network>/ap_nms`;
            other keys and None are left out.
        path: the PNG to write; its folder is made.
        switch_steps: name of a run -> the step from which on it matches one to one, drawn as a vertical line.

    Raises:
        ValueError: if no row of any run has an `ap_nms`, or `switch_steps` names a run that is not in `logs`.
    """
    from matplotlib.figure import Figure

    switch_steps = switch_steps or {}
    if unknown := set(switch_steps) - set(logs):
        raise ValueError(f"switch_steps names {sorted(unknown)}, which are not among the logs {', '.join(logs)}")
    values = itertools.chain.from_iterable(row.items() for rows in logs.values() for row in rows)
    keys = dict.fromkeys(key for key, value in values if key.endswith("/ap_nms") and value is not None)
    if not keys:
        raise ValueError(f"no row of the logs {', '.join(logs) or '(none)'} has a key like teacher/ap_nms")
    figure = Figure(figsize=(1 + 5.5 * len(keys), 4.5), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    for panel, with_nms in zip(panels, keys, strict=True):
        for run, (name, rows) in enumerate(logs.items()):
            for key, style in zip((with_nms.removesuffix("_nms"), with_nms), _NMS_STYLES.values(), strict=True):
                if points := _points(rows, key):
                    panel.plot(*points, style, color=f"C{run}", marker=".")
            if name in switch_steps:
                panel.axvline(switch_steps[name], color=f"C{run}", linestyle=":")
        panel.set(title=with_nms.removesuffix("/ap_nms"), xlabel="optimizer steps")
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="AP at IoU 0.50:0.95")
    panels[0].set_ylim(bottom=0)
    _legend(figure, logs, _NMS_STYLES | ({"one-to-one from here on": ":"} if switch_steps else {}))
    _write(figure, path)


def cost_histograms(rows: Rows, path: str | Path) -> None:
    """Write a PNG with the matching costs of pseudo-labels at up to six steps, and the mixture fitted to them.

    Args:
        rows: the ones with `costs` are chosen from, evenly over their order. Such a row has `step`, `costs` (N floats)
            and, each possibly None, `correct` (N bools: whether the pseudo-label is right), `weights`, `means` and
            `variances` (2 floats each, of the mixture, the cheaper component first) and `threshold`.
        path: the PNG to write; its folder is made.

    Raises:
        ValueError: if no row has costs, or a row does not have one entry of `correct` per cost.
    """
    from matplotlib.figure import Figure

    filled = [row for row in rows if row.get("costs") is not None and len(row["costs"])]
    if not filled:
        raise ValueError(f"none of the {len(rows)} rows has `costs`; there is nothing to draw")
    chosen = [filled[i] for i in np.unique(np.linspace(0, len(filled) - 1, 6).round().astype(int))]
    columns = min(3, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(1 + 4 * columns, 0.8 + 3 * lines), layout="constrained")
    handles: dict[str, Any] = {}
    for number, row in enumerate(chosen, start=1):
        panel = figure.add_subplot(lines, columns, number)
        _draw_costs(panel, row)
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    _place_legend(figure, list(handles.values()))
    _write(figure, path)


def _draw_costs(panel: Any, row: Mapping[str, Any]) -> None:
    """Draw the costs of one row as bars, and as lines how many of them its mixture expects in a bar around a cost."""
    costs, correct = np.asarray(row["costs"], dtype=float), row.get("correct")
    if correct is not None and len(correct) != len(costs):
        raise ValueError(f"step {row['step']}: {len(costs)} costs came with {len(correct)} entries of `correct`")
    edges = np.histogram_bin_edges(costs, bins=30)
    if correct is None:
        panel.hist(costs, edges, color="0.75", label="unknown")
    else:
        right = np.asarray(correct, dtype=bool)
        look = {"color": [GROUND_TRUTH_COLOR, PREDICTION_COLOR], "label": ["right", "wrong"], "alpha": 0.5}
        panel.hist([costs[right], costs[~right]], edges, stacked=True, **look)
    mixture = [row.get(key) for key in ("weights", "means", "variances")]
    if all(values is not None for values in mixture):
        weights, means, variances = (np.asarray(values, dtype=float)[:, None] for values in mixture)
        half = (edges[1] - edges[0]) / 2
        grid = np.linspace(edges[0] - 2 * half, edges[-1] + 2 * half, 400)
        # The share within a bar, not the density at its middle: a component narrower than a bar stays in the picture.
        below = ndtr((np.stack([grid - half, grid + half])[:, None] - means) / np.sqrt(variances))  # (2, 2, 400)
        expected = len(costs) * weights * (below[1] - below[0])
        panel.plot(grid, expected.sum(axis=0), color="black", linewidth=2.5, label="mixture")
        for component, color, name in zip(expected, ("C0", "C1"), ("cheap", "costly"), strict=True):
            panel.plot(grid, component, color=color, label=f"{name} component")
    if row.get("threshold") is not None:
        panel.axvline(row["threshold"], color="black", linestyle="--", label="threshold")
    panel.set(xlabel="matching cost", ylabel="pseudo-labels")
    panel.set_title(f"step {row['step']}: {len(costs)} costs", fontsize="medium")


def ablation_bars(table: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, *, baseline: str) -> None:
    """Write a PNG with a bar per arm of an ablation, grouped: the mean over seeds, and a dot per seed.

    Args:
        table: group, such as "5 % labels" -> arm -> AP of every seed. An arm may be absent from a group.
        path: the PNG to write; its folder is made.
        baseline: the arm whose mean runs through its group as a dashed line.

    Raises:
        ValueError: if no group has the baseline, or an arm has no AP.
    """
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(arm for group in table.values() for arm in group))
    if baseline not in arms:
        raise ValueError(f"baseline={baseline!r} is none of the arms {', '.join(arms) or '(none)'}")
    width = 0.84 / len(arms)
    figure = Figure(figsize=(max(6.0, 1.5 + 0.62 * len(table) * (len(arms) + 1)), 4.5), layout="constrained")
    panel = figure.subplots()
    for place, (group, values_of) in enumerate(table.items()):
        for arm, values in values_of.items():
            if len(values) == 0:
                raise ValueError(f"table[{group!r}][{arm!r}] is empty; leave the arm out or give the AP of a seed")
            number, mean = arms.index(arm), float(np.mean(values))
            x = place + (number - (len(arms) - 1) / 2) * width
            panel.bar(x, mean, 0.92 * width, color=f"C{number}", alpha=0.75)
            panel.plot([x] * len(values), values, "o", color="black", markersize=3.5, markerfacecolor="white")
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            look: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "bbox": ground}
            panel.annotate(f"{mean:.3f}", (x, max(values)), (0, 6), **look)
            if arm == baseline:
                panel.hlines(mean, place - 0.46, place + 0.46, colors="black", linestyles="--", linewidth=1)
    panel.set(xticks=range(len(table)), xticklabels=list(table), ylabel="AP at IoU 0.50:0.95")
    panel.margins(y=0.1)
    _legend(figure, arms, {"one seed": "o", f"mean of {baseline}": "--"})
    _write(figure, path)


def _points(rows: Rows, key: str) -> tuple[list[int], list[float]] | None:
    """Return the steps and the values of the rows that have the key; None when there are none."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return ([step for step, _ in points], [value for _, value in points]) if points else None


def _legend(figure: Any, names: Iterable[str], styles: Mapping[str, Any]) -> None:
    """Explain a figure: a color per name, in the order C0, C1, ..., then a line style or the marker "o" each."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=f"C{i}", linewidth=4, label=name) for i, name in enumerate(names)]
    for name, style in styles.items():
        look: dict[str, Any] = {"marker": "o", "linestyle": ""} if style == "o" else {"linestyle": style}
        handles.append(Line2D([], [], color="black", markerfacecolor="white", label=name, **look))
    _place_legend(figure, handles)


def _place_legend(figure: Any, handles: Sequence[Any]) -> None:
    """Put a legend below the panels, in as many rows as its entries of two inches each need."""
    rows = math.ceil(len(handles) / (figure.get_figwidth() // 2))
    columns = math.ceil(len(handles) / rows)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _write(figure: Any, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")
