"""Cost-based pseudo-label mining: candidates below the score threshold that are good enough for consistency queries.

What the student predicts is matched with the candidates. The matching costs of one step, of all processes, are modeled
by two Gaussians, a cheap and reliable one and an expensive one, and the candidates that cost no more than a threshold
derived from the cheap one are mined. The filters that the paper compares it with are here too.

Source: Semi-DETR (arXiv 2307.08095), cost-based pseudo-label mining. Differences to the released code:

- it takes the densest sample of the component that started at the least cost (rule "densest" here); the paper takes
  the center of the reliable component (rule "mean" here), which is here the one of the smaller fitted mean;
- without any cost its threshold is 0, which selects nothing because there is nothing; here it is -inf;
- if all costs are equal it fits nevertheless; here that value is the threshold, which selects the same;
- of equally dense samples it takes the first, which depends on the order of images; here the cheapest;
- it selects by index, here by mask, and it needs a process group, here a single process does without.

Legend: B images, Q queries, C labels, G boxes of one image, N costs of all images of all processes, K matched pairs.
"""

import warnings
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from semidetr_hf.model.matching import HungarianMatcher, pad_targets
from semidetr_hf.structures import PseudoLabels, Target

ThresholdRule = Literal["mean", "densest"]


@dataclass(frozen=True)
class CostMixture:
    """Two Gaussians fitted to matching costs; component 0 has the smaller mean.

    Attributes:
        weights: share of each component, together 1.
        means: center of each component, ascending, in units of cost.
        variances: of each component, in squared units of cost.
        threshold: candidates that cost at most this are mined; in float32 precision, that of costs.
    """

    weights: tuple[float, float]
    means: tuple[float, float]
    variances: tuple[float, float]
    threshold: float


def fit_cost_mixture(costs: Tensor, *, rule: ThresholdRule) -> CostMixture | None:
    """Fit two Gaussians to matching costs.

    Args:
        costs: (N,) float, any order; lower is better.
        rule: "mean" = the threshold is the smaller fitted mean (the paper); "densest" = it is the sample of largest
            mixture density among those assigned to the component that started at the least cost (the released code),
            which need not be the one of the smaller mean.

    Returns:
        The mixture; None if there is nothing to separate: fewer than two costs, or all equal.

    Raises:
        ValueError: if `rule` is unknown, or if costs are not finite, with how many.

    Source: Semi-DETR (arXiv 2307.08095); start values and regularization of the released code.
    """
    if rule not in get_args(ThresholdRule):
        raise ValueError(f"rule must be one of {get_args(ThresholdRule)}, got {rule!r}")
    bad = int((~costs.isfinite()).sum())
    if bad:
        raise ValueError(
            f"{bad} of {costs.numel()} costs are NaN or infinite and have no mixture: leave out the boxes without a "
            "query (gather_costs does), and look for diverged predictions if there is NaN"
        )
    # float64: variances are differences of squares, whose rounding in float32 exceeds the regularization below.
    # Sorted: sums, and which of two equally dense samples comes first, would depend on the order of images and ranks.
    samples = np.sort(costs.detach().cpu().double().numpy()).reshape(-1, 1)  # (N, 1)
    if len(samples) < 2 or samples.min() == samples.max():
        return None
    mixture = GaussianMixture(
        n_components=2,
        covariance_type="diag",
        weights_init=[0.5, 0.5],
        means_init=[[samples.min()], [samples.max()]],
        precisions_init=[[1.0], [1.0]],
        reg_covar=1e-5,
        tol=1e-3,
        max_iter=100,
    )
    with warnings.catch_warnings():
        # Harmless: every iteration leaves a valid mixture, which a further one would hardly move, and the next step
        # fits anew. The released code takes the mixture as it is after the last iteration, too.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(samples)
    weights, means, variances = mixture.weights_, mixture.means_[:, 0], mixture.covariances_[:, 0]
    first, second = np.argsort(means, kind="stable").tolist()
    threshold = means[first] if rule == "mean" else _densest_sample(mixture, samples)
    return CostMixture(
        weights=(float(weights[first]), float(weights[second])),
        means=(float(means[first]), float(means[second])),
        variances=(float(variances[first]), float(variances[second])),
        # Without rounding, a mean that is one sample's cost but for the last bit would lose that very sample.
        threshold=float(np.float32(threshold)),
    )


def _densest_sample(mixture: GaussianMixture, samples: np.ndarray) -> float:
    """Return the cost (N, 1) of largest mixture density in component 0, in component 1 if that is empty."""
    component = mixture.predict(samples)
    members = samples[component == (0 if (component == 0).any() else 1)]
    return float(members[mixture.score_samples(members).argmax(), 0])


def fit_cost_threshold(costs: Tensor, *, rule: ThresholdRule) -> float:
    """Return the largest cost of a reliable pseudo-label.

    Args:
        costs: (N,) float, of all candidates of all processes (see `gather_costs`); lower is better.
        rule: see `fit_cost_mixture`.

    Returns:
        -inf without any cost; the cost itself if there is one or all are equal; else the threshold of the mixture.

    Raises:
        ValueError: if `rule` is unknown, or if costs are not finite, with how many.
    """
    mixture = fit_cost_mixture(costs, rule=rule)
    if mixture is not None:
        return mixture.threshold
    return float(costs.min()) if costs.numel() else -float("inf")


@torch.no_grad()
def matched_costs(logits: Tensor, boxes: Tensor, targets: list[Target], matcher: HungarianMatcher) -> list[Tensor]:
    """Return what the prediction that is matched with each box costs.

    Args:
        logits: (B, Q, C), of the student's last decoder layer on the strong view.
        boxes: (B, Q, 4) cxcywh normalized by the unpadded view.
        targets: the candidates of each image in that view, cxcywh normalized.
        matcher: assigns the predictions, and defines the cost.

    Returns:
        Per image (G,) float32 on the CPU; +inf for a box that is left without a query because there are fewer queries
        than boxes, or with one that is not finite.
    """
    num_labels = logits.shape[-1]
    # One transfer: all that follows is small.
    logits, boxes = torch.cat([logits.float(), boxes.float()], dim=-1).cpu().split([num_labels, 4], dim=-1)
    # The matcher knows nothing of this package's types, and a TypedDict is no dict to a type checker.
    padded = pad_targets(cast("list[dict[str, Tensor]]", targets), logits.device)
    matches = matcher(logits[None], boxes[None], class_labels=padded.class_labels[None], targets=padded)
    prediction = (matches.image_index, matches.query_index)
    target = (matches.image_index, matches.target_index)
    # The matcher keeps its costs to itself: K images of one query and one box each give those of the pairs alone.
    pair_costs = matcher.cost(
        logits[prediction][None, :, None],  # (1, K, 1, C)
        boxes[prediction][None, :, None],
        class_labels=padded.class_labels[target][None, :, None],
        target_boxes=padded.boxes[target][:, None],  # (K, 1, 4)
    )
    costs = padded.boxes.new_full(padded.class_labels.shape, float("inf"))  # (B, M)
    pair_costs = pair_costs.reshape(-1)
    costs[target] = pair_costs.where(pair_costs.isfinite(), float("inf"))
    return [costs[i, :count] for i, count in enumerate(padded.counts)]


def gather_costs(costs: list[Tensor]) -> Tensor:
    """Put the costs of all images of all processes together; all processes must call it, also those without a cost.

    Args:
        costs: per image of this process (G,) float; +inf, a box without a query, is left out.

    Returns:
        (N,) float32 on the CPU, in the order of ranks, the same on every process.
    """
    own = torch.cat([torch.empty(0, dtype=torch.float32), *(image.detach().float().cpu() for image in costs)])
    own = own[own != float("inf")]
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return own
    # Objects, not tensors: lengths differ, and a process without images does not know the others' device.
    gathered: list[list[float]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, own.tolist())
    return torch.tensor(sum(gathered, []), dtype=torch.float32)


def mine_pseudo_labels(costs: list[Tensor], is_confident: list[Tensor], threshold: float) -> list[Tensor]:
    """Choose the pseudo-labels for consistency queries: the confident ones and those that cost little.

    Args:
        costs: per image (G,) float, see `matched_costs`.
        is_confident: per image (G,) bool, chosen by their score.
        threshold: see `fit_cost_threshold`; an infinite cost is above every threshold.

    Returns:
        Per image (G,) bool.

    Raises:
        ValueError: if the two lists disagree in the number of images or of boxes, with the numbers.
    """
    counts, expected = [tuple(c.shape) for c in costs], [tuple(c.shape) for c in is_confident]
    if counts != expected:
        raise ValueError(
            f"costs have the shapes {counts} and is_confident {expected}: both must describe the same candidates"
        )
    return [
        confident | (cost.isfinite() & (cost <= threshold))
        for cost, confident in zip(costs, is_confident, strict=True)
    ]


def keep_top_k(candidates: list[PseudoLabels], k: int) -> list[Tensor]:
    """Choose the k best scores of each image; of equal scores the first.

    Args:
        candidates: per image.
        k: how many, at least 0; all where an image has fewer.

    Returns:
        Per image (G,) bool.

    Raises:
        ValueError: if k is negative.
    """
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
    masks = []
    for labels in candidates:
        mask = torch.zeros_like(labels.scores, dtype=torch.bool)
        mask[labels.scores.argsort(descending=True, stable=True)[:k]] = True
        masks.append(mask)
    return masks


def keep_all(candidates: list[PseudoLabels]) -> list[Tensor]:
    """Choose every candidate; per image (G,) bool."""
    return [torch.ones_like(labels.scores, dtype=torch.bool) for labels in candidates]
