"""How a run went, as charts over its steps: losses, learning rate, AP, and pseudo-labels."""

from collections.abc import Sequence
from typing import Any

from semidetr_hf.report.charts import LineChart, Point, Series, line_chart
from semidetr_hf.report.run_folder import Phase, RunFolder

NETWORKS = ("teacher", "student")
SETS = ("candidates", "confident", "mined")
_TERMS = {"loss_ce": "class", "loss_bbox": "box, L1", "loss_giou": "box, GIoU"}


def progress_charts(run: RunFolder, phases: Sequence[Phase]) -> list[LineChart]:
    """Return AP, losses and learning rate of a run over its steps; the supervised run beside it where there is one."""
    end = (0.0, float(max(run.config.schedule.num_steps, run.last_step)))
    charts = [
        line_chart("AP on the validation images", _ap_series(run), phases=phases, x_range=end),
        line_chart("Total loss", _loss_series(run), phases=phases, x_range=end),
    ]
    for prefix, title in (("sup", "Losses on labeled images"), ("pseudo", "Losses on pseudo-labels")):
        series = [
            Series(name, points(run.log, f"{prefix}_{term}"), color)
            for color, (term, name) in enumerate(_TERMS.items())
        ]
        note = "Last decoder layer, before weighting."
        charts.append(line_chart(title, series, note=note, phases=phases, x_range=end))
    consistency = [Series("consistency", points(run.log, "consistency"), 3)]
    charts += [
        line_chart("Consistency loss", consistency, note="Last decoder layer.", phases=phases, x_range=end),
        line_chart(
            "Learning rate", [Series("learning rate", points(run.log, "learning_rate"))], phases=phases, x_range=end
        ),
        line_chart(
            "Norm of the gradient",
            [Series("before clipping", points(run.log, "gradient_norm"))],
            phases=phases,
            x_range=end,
        ),
    ]
    return [chart for chart in charts if chart is not None]


def pseudo_label_charts(run: RunFolder, phases: Sequence[Phase]) -> list[LineChart]:
    """Return count, thresholds and, where it was measured, quality of the pseudo-labels over the steps."""
    end = (0.0, float(max(run.config.schedule.num_steps, run.last_step)))
    log = run.log
    counts = [
        Series("confident: above the score threshold", points(log, "pseudo_labels"), 0),
        Series("mined for consistency", points(log, "mined"), 1, is_dashed=True),
    ]
    charts = [line_chart("Pseudo-labels per unlabeled image", counts, phases=phases, x_range=end)]
    for kind, title in (("precision", "Precision of"), ("recall", "Recall of"), ("mean_iou", "Mean IoU of right")):
        series = [
            Series(name, points(log, f"quality/{name}_{kind}"), color, is_dashed=name == "mined")
            for color, name in enumerate(SETS)
        ]
        note = "Against the hidden labels; right means the same class and an IoU of at least 0.5."
        charts.append(
            line_chart(f"{title} pseudo-labels", series, note=note, phases=phases, x_range=end, y_range=(0.0, 1.0))
        )
    charts += [
        line_chart("Score thresholds", _score_thresholds(run), phases=phases, x_range=end, y_range=(0.0, 1.0)),
        line_chart(
            "Cost threshold of label mining",
            [Series("largest matching cost", points(log, "cost_threshold"), 3)],
            phases=phases,
            x_range=end,
        ),
    ]
    return [chart for chart in charts if chart is not None]


def points(log: Sequence[dict[str, Any]], key: str) -> list[Point]:
    """Return the steps and values of the rows that have a number of that name."""
    return [(row["step"], row[key]) for row in log if isinstance(row.get(key), int | float)]


def _ap_series(run: RunFolder) -> list[Series]:
    series = [Series(name, points(run.log, f"{name}/ap"), color) for color, name in enumerate(NETWORKS)]
    if run.baseline is not None:
        series += [
            Series(name, points(run.baseline.log, f"{network}/ap"), color + 2, is_dashed=True)
            for color, (network, name) in enumerate(
                {"teacher": "supervised, averaged", "student": "supervised"}.items()
            )
        ]
    return series


def _loss_series(run: RunFolder) -> list[Series]:
    series = [Series("this run", points(run.log, "loss"))]
    if run.baseline is not None:
        series.append(Series("supervised", points(run.baseline.log, "loss"), 2, is_dashed=True))
    return series


def _score_thresholds(run: RunFolder) -> list[Series]:
    """Return the threshold of the settings at every row with pseudo-labels; of adaptive ones mean and range."""
    rules = run.config.pseudo_labels
    if rules.class_thresholds == "adaptive":
        return [
            Series("mean over classes", points(run.log, "score_threshold")),
            Series("lowest class", points(run.log, "score_threshold_lowest"), 1, is_dashed=True),
            Series("highest class", points(run.log, "score_threshold_highest"), 2, is_dashed=True),
        ]
    steps = [row["step"] for row in run.log if "pseudo_labels" in row]
    return [Series("score_threshold of the settings", [(step, rules.score_threshold) for step in steps])]
