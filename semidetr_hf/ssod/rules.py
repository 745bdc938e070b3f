"""Settings of the semi-supervised losses: which detections teach, and how consistency queries are made.

Source: Semi-DETR (arXiv 2307.08095); values of the released code are named where they differ.
"""

from dataclasses import dataclass
from typing import Literal

from semidetr_hf.ssod.label_mining import ThresholdRule
from semidetr_hf.ssod.mixing import Mixing


@dataclass(frozen=True, kw_only=True)
class PseudoLabelRules:
    """Which detections of the teacher become targets.

    Attributes:
        score_threshold: smallest score (0.4 in the paper).
        confident_source: take the confident ones of all "detections", or of the "candidates" that passed the mean +
            deviation filter (released code).
        mean_std_filter: candidates have a score of at least mean + standard deviation of the image's scores.
        nms_iou: two boxes of a class that overlap more are duplicates.
        min_score: smallest score before duplicates are removed.
        max_detections: most detections of one image.
        min_box_size: smallest width and height of a pseudo-label in the strong view, in pixels; None keeps all.
        mixing: how images are mixed of unlabeled ones, see `mix_pseudo_labeled`.
    """

    score_threshold: float = 0.4
    confident_source: Literal["detections", "candidates"] = "detections"
    mean_std_filter: bool = True
    nms_iou: float = 0.6
    min_score: float = 0.01
    max_detections: int = 300
    min_box_size: float | None = 1.0
    mixing: Mixing = "none"


@dataclass(frozen=True, kw_only=True)
class ConsistencyRules:
    """How consistency queries are made; see `ConsistencyConfig` of the training configuration.

    Attributes:
        candidate_filter: which candidates besides the confident ones: those of low matching "cost", "none" (fixed
            threshold), the "top_k" of each image, or all that passed the "mean_std" filter.
        cost_threshold: rule for the threshold of the mixture, see `fit_cost_mixture`.
        top_k: for the filter of that name.
        source: content from features of the "teacher" for both networks (released code), or from both views,
            "exchanged" between the networks (paper).
        copies: equal copies of every query.
        rows: which rows the loss is a mean of, see `consistency_loss`.
        unit_length: compare states scaled to length 1 (released code).
    """

    candidate_filter: Literal["cost", "none", "top_k", "mean_std"] = "cost"
    cost_threshold: ThresholdRule = "mean"
    top_k: int = 10
    source: Literal["teacher", "exchanged"] = "exchanged"
    copies: int = 1
    rows: Literal["real", "all"] = "real"
    unit_length: bool = False
