"""The model card: what the page of a detector on the Hub says, and the metadata by which it is found.

`model_card.md` beside this file is the text, a template of jinja2; the metadata is that of huggingface_hub's classes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md")
TASK = "object-detection"
PAPER = "2307.08095"
# Our name -> that of transformers' object detection, and the one that people read.
METRICS = {"ap": ("map", "AP"), "ap50": ("map_50", "AP50"), "ap75": ("map_75", "AP75")}


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What is told about the training of a detector.

    Attributes:
        network: which one it is: `student`, `teacher`, or `supervised`, the baseline.
        scores: network -> `ap`, `ap50`, `ap75`, each from 0 to 1, and `step`, of its best evaluation; may be empty.
        data: what it was trained on, in a word or two.
        data_id: the same as an id of the Hub; None if it is not there.
        val: what it was evaluated on; None without an evaluation.
        num_images: `labeled`, `unlabeled`, `val` -> number of images, as far as they are known.
        label_fraction: share of the labeled set whose boxes were used; None for all of them.
        fold: number of the draw of that share.
        seed: of the run.
        steps: optimizer steps that were made.
        seconds: wall-clock time of the run; None if it is not known.
        command: that makes such a run.
        base_model: id of the Hub that the weights come from; None if there is none.
    """

    network: str
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    data: str
    data_id: str | None = None
    val: str | None = None
    num_images: Mapping[str, int] = field(default_factory=dict)
    label_fraction: float | None = None
    fold: int = 0
    seed: int = 0
    steps: int
    seconds: float | None = None
    command: str
    base_model: str | None = None

    def results(self) -> dict[str, Any]:
        """Return plain values, as they stand in `eval_results.json`."""
        return asdict(self)


def build_card(
    detector: Path,
    repo_id: str,
    *,
    facts: TrainingFacts | None,
    other_runs: Sequence[TrainingFacts] = (),
    curves: str | None = None,
    examples: Sequence[str] = (),
    license: str = "apache-2.0",
) -> ModelCard:
    """Return the model card of a saved detector.

    Args:
        detector: its folder.
        repo_id: of the repository.
        facts: about its training; None if they are not known.
        other_runs: the same recipe with other labels or seeds, whose results are told too.
        curves: path in the repository of a picture of the training.
        examples: paths in the repository of pictures to try the detector on.
        license: identifier of the Hub for the licence of the weights.

    Raises:
        ValueError: if the metadata is not what the Hub's library takes.
    """
    runs = [*([] if facts is None else [facts]), *other_runs]
    config = _read_json(detector / "config.json")
    processor = _read_json(detector / "preprocessor_config.json")
    data = ModelCardData(
        model_name=repo_id.rpartition("/")[2],
        pipeline_tag=TASK,
        library_name="transformers",
        license=license,
        base_model=None if facts is None else facts.base_model,
        datasets=None if facts is None or facts.data_id is None else [facts.data_id],
        tags=[TASK, "semi-supervised-learning", "detr", "semidetr", "vision", f"arxiv:{PAPER}"],
        widget=_widget(repo_id, examples),
        eval_results=[result for run in runs for result in _eval_results(run)] or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        classes=[name for _, name in sorted(config.get("id2label", {}).items(), key=lambda item: int(item[0]))],
        backbone=(config.get("backbone_config") or {}).get("backbone"),
        nms_iou=processor.get("nms_iou"),
        facts=facts,
        runs=runs,
        curves=curves,
        license=license,
        paper=PAPER,
    )


def _eval_results(facts: TrainingFacts) -> list[EvalResult]:
    """Return the metrics of the network that is in the repository, each with the labels and the seed behind it."""
    score = facts.scores.get(facts.network)
    if score is None:
        return []
    labels = "all" if facts.label_fraction is None else f"{facts.label_fraction:.0%}, fold {facts.fold}"
    return [
        EvalResult(
            task_type=TASK,
            task_name="Object Detection",
            dataset_type=facts.data_id or "custom",
            dataset_name=facts.val or facts.data,
            # Results with equal ones are put together under the first of them.
            dataset_config=f"labels: {labels}",
            dataset_args={"label_fraction": facts.label_fraction or 1.0, "fold": facts.fold},
            metric_type=metric,
            metric_name=f"{title} ({facts.network}, seed {facts.seed})",
            metric_value=round(score[name], 4),
            metric_args={"network": facts.network, "seed": facts.seed, "step": score["step"]},
        )
        for name, (metric, title) in METRICS.items()
    ]


def _widget(repo_id: str, examples: Sequence[str]) -> list[dict[str, str]] | None:
    address = f"{constants.ENDPOINT}/{repo_id}/resolve/main"
    return [{"src": f"{address}/{path}", "example_title": Path(path).stem} for path in examples] or None


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
