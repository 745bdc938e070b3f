import itertools
import math
import random

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from semidetr_hf.model.box_ops import cxcywh_to_xyxy, iou
from semidetr_hf.model.matching import HungarianMatcher, Matches, PaddedTargets, pad_targets
from semidetr_hf.ssod.label_mining import (
    fit_cost_mixture,
    fit_cost_threshold,
    gather_costs,
    keep_top_k,
    matched_costs,
    mine_pseudo_labels,
)
from semidetr_hf.ssod.one_to_many import Assignment, OneToManyAssigner
from semidetr_hf.ssod.one_to_many_variants import ATSSAssigner, MaxIoUAssigner, SimOTAAssigner
from semidetr_hf.structures import PseudoLabels

NUM_LABELS = 3
MATCHER = HungarianMatcher(class_cost=2.0, bbox_cost=5.0, giou_cost=2.0)
ASSIGNERS = {
    "alignment": OneToManyAssigner(top_k=4),
    "max_iou": MaxIoUAssigner(threshold=0.3),
    "atss": ATSSAssigner(top_k=5),
    "sim_ota": SimOTAAssigner(candidates=4),
}
SEEDS = st.integers(0, 2**32 - 1)
RULES = st.sampled_from(["mean", "densest"])
COSTS = st.floats(-50, 100, width=32)
THRESHOLDS = st.sampled_from([-math.inf, math.inf]) | st.floats(allow_nan=False)

# P prediction sets, B images, Q queries, C labels, G boxes of one image


class Scene:
    """Random predictions (P, B, Q, ...) for images with the given numbers of boxes; no two of them are alike."""

    def __init__(self, seed: int, counts: list[int], num_queries: int, num_sets: int = 1, spread: float = 3.0) -> None:
        rng = torch.Generator().manual_seed(seed)
        shape = (num_sets, len(counts), num_queries)
        self.logits = torch.randn(*shape, NUM_LABELS, generator=rng) * spread
        self.boxes = self._boxes(rng, *shape)
        self.targets = [
            {"class_labels": torch.randint(NUM_LABELS, (n,), generator=rng), "boxes": self._boxes(rng, n)}
            for n in counts
        ]
        # Some queries lie near a box, as those of a trained detector do.
        for image, count in enumerate(counts):
            for query in range(0, num_queries if count else 0, 2):
                box = self.targets[image]["boxes"][query % count]
                shift = torch.randn(num_sets, 4, generator=rng) * 0.02
                self.boxes[:, image, query] = (box + shift).clamp(1e-3, 1)

    @staticmethod
    def _boxes(rng: torch.Generator, *shape: int) -> Tensor:
        return torch.rand(*shape, 4, generator=rng) * 0.6 + torch.tensor([0.2, 0.2, 0.02, 0.02])

    @property
    def padded(self) -> PaddedTargets:
        return pad_targets(self.targets, self.logits.device)

    @property
    def class_labels(self) -> Tensor:
        return self.padded.class_labels[None].expand(len(self.logits), -1, -1)

    def match(self) -> Matches:
        return MATCHER(self.logits, self.boxes, class_labels=self.class_labels, targets=self.padded)

    def assign(self, name: str) -> Assignment:
        scores = self.logits.sigmoid()
        return ASSIGNERS[name](scores, self.boxes, class_labels=self.class_labels, targets=self.padded)

    def cost(self) -> Tensor:
        return MATCHER.cost(self.logits, self.boxes, class_labels=self.class_labels, target_boxes=self.padded.boxes)

    def reorder_queries(self, order: Tensor) -> None:
        self.logits, self.boxes = self.logits[:, :, order], self.boxes[:, :, order]

    def reorder_boxes(self, image: int, order: Tensor) -> None:
        self.targets[image] = {name: values[order] for name, values in self.targets[image].items()}

    def keep(self, prediction_set: int, image: int) -> None:
        one_set, one_image = slice(prediction_set, prediction_set + 1), slice(image, image + 1)
        self.logits, self.boxes = self.logits[one_set, one_image], self.boxes[one_set, one_image]
        self.targets = self.targets[one_image]


@st.composite
def scenes(draw: st.DrawFn, max_queries: int = 8, max_boxes: int = 5, max_images: int = 3) -> Scene:
    counts = draw(st.lists(st.integers(0, max_boxes), min_size=1, max_size=max_images))
    queries, sets = draw(st.integers(1, max_queries)), draw(st.integers(1, 2))
    return Scene(draw(SEEDS), counts, queries, sets, draw(st.sampled_from([0.0, 3.0, 100.0])))


def pairs_of(matches: Matches, *, prediction_set: int = 0, image: int = 0) -> list[tuple[int, int]]:
    chosen = (matches.set_index == prediction_set) & (matches.image_index == image)
    return list(zip(matches.query_index[chosen].tolist(), matches.target_index[chosen].tolist(), strict=True))


def shuffled(count: int, rng: random.Random) -> Tensor:
    return torch.tensor(rng.sample(range(count), count), dtype=torch.int64)


# ---- One to one


@given(scenes())
def test_every_box_gets_one_query_of_its_own_as_far_as_there_are_queries(scene: Scene) -> None:
    matches = scene.match()
    sets, images, queries = scene.logits.shape[:3]
    assert len(matches.set_index) == sets * sum(min(queries, count) for count in scene.padded.counts)
    for prediction_set, image in itertools.product(range(sets), range(images)):
        pairs = pairs_of(matches, prediction_set=prediction_set, image=image)
        count = scene.padded.counts[image]
        assert len(pairs) == min(queries, count)
        assert len({query for query, _ in pairs}) == len({box for _, box in pairs}) == len(pairs)
        assert all(query < queries and box < count for query, box in pairs)
        assert pairs == sorted(pairs)


@given(scenes(max_queries=5, max_boxes=4, max_images=1))
def test_no_other_matching_costs_less(scene: Scene) -> None:
    matches = scene.match()
    cost = scene.cost().double()[..., : scene.padded.counts[0]]  # without padding
    queries, boxes = cost.shape[2:]
    for prediction_set in range(len(cost)):
        table = cost[prediction_set, 0].tolist()
        pairs = pairs_of(matches, prediction_set=prediction_set)
        if queries >= boxes:
            ways = (list(zip(way, range(boxes), strict=True)) for way in itertools.permutations(range(queries), boxes))
        else:
            ways = (list(enumerate(way)) for way in itertools.permutations(range(boxes), queries))
        least = min(sum(table[query][box] for query, box in way) for way in ways)
        assert sum(table[query][box] for query, box in pairs) == pytest.approx(least, abs=1e-4)


@given(scenes(max_images=1), st.randoms(use_true_random=False))
def test_matches_follow_queries_and_boxes_that_change_places(scene: Scene, rng: random.Random) -> None:
    before = scene.match()
    queries, boxes = shuffled(scene.logits.shape[2], rng), shuffled(scene.padded.counts[0], rng)
    scene.reorder_queries(queries)
    scene.reorder_boxes(0, boxes)
    after = scene.match()
    for prediction_set in range(len(scene.logits)):
        moved = {(int(queries[q]), int(boxes[g])) for q, g in pairs_of(after, prediction_set=prediction_set)}
        assert moved == set(pairs_of(before, prediction_set=prediction_set))


@given(scenes())
def test_images_and_prediction_sets_are_matched_as_if_they_were_alone(scene: Scene) -> None:
    together = scene.match()
    logits, boxes, targets = scene.logits, scene.boxes, scene.targets
    for prediction_set, image in itertools.product(range(len(logits)), range(len(targets))):
        scene.logits, scene.boxes, scene.targets = logits, boxes, targets
        scene.keep(prediction_set, image)
        assert pairs_of(scene.match()) == pairs_of(together, prediction_set=prediction_set, image=image)


@given(scenes(), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 3), SEEDS)
def test_predictions_that_are_no_numbers_are_matched_last_and_assigned_never(
    scene: Scene, bad: float, coordinate: int, seed: int
) -> None:
    image = max(range(len(scene.targets)), key=lambda place: scene.padded.counts[place])
    query, queries, count = seed % scene.boxes.shape[2], scene.boxes.shape[2], scene.padded.counts[image]
    scene.boxes[0, image, query, coordinate] = bad
    pairs = pairs_of(scene.match(), image=image)
    assert len(pairs) == min(queries, count)
    assert (query in {matched for matched, _ in pairs}) == (count >= queries)
    for name in ASSIGNERS:
        assert scene.assign(name).quality[0, image, query] == 0


# ---- One to many


@pytest.mark.parametrize("name", ASSIGNERS)
@given(scene=scenes(max_queries=12))
def test_soft_targets_are_shares_of_overlaps_with_a_real_box(name: str, scene: Scene) -> None:
    given_to = scene.assign(name)
    counts = torch.tensor(scene.padded.counts)[None, :, None]
    assert (given_to.target_index >= -1).all() and (given_to.target_index < counts).all()
    assigned = given_to.target_index >= 0
    assert not given_to.quality[~assigned].any() and not given_to.iou[~assigned].any()
    assert (given_to.iou[assigned] > 0).all() and (given_to.iou <= 1).all()
    assert (given_to.quality >= 0).all() and (given_to.quality <= 1).all()
    for prediction_set, image, query in assigned.nonzero().tolist():
        box = scene.targets[image]["boxes"][given_to.target_index[prediction_set, image, query]]
        overlap = iou(cxcywh_to_xyxy(scene.boxes[prediction_set, image, query]), cxcywh_to_xyxy(box), eps=1e-12)
        assert given_to.iou[prediction_set, image, query] == pytest.approx(float(overlap), abs=1e-6)
        same = given_to.target_index[prediction_set, image] == given_to.target_index[prediction_set, image, query]
        assert given_to.quality[prediction_set, image][same].max() <= given_to.iou[prediction_set, image][same].max()


@pytest.mark.parametrize("name", ASSIGNERS)
@given(scene=scenes(max_queries=12, max_images=1), rng=st.randoms(use_true_random=False))
def test_assignments_follow_queries_and_boxes_that_change_places(name: str, scene: Scene, rng: random.Random) -> None:
    before = scene.assign(name)
    queries, boxes = shuffled(scene.logits.shape[2], rng), shuffled(scene.padded.counts[0], rng)
    scene.reorder_queries(queries)
    scene.reorder_boxes(0, boxes)
    after = scene.assign(name)
    # Box g is now at place boxes.index(g); background stays background.
    place = torch.cat([boxes.argsort(), torch.tensor([-1])])
    assert torch.equal(after.target_index, place[before.target_index][:, :, queries])
    torch.testing.assert_close(after.quality, before.quality[:, :, queries])
    torch.testing.assert_close(after.iou, before.iou[:, :, queries])


@pytest.mark.parametrize("name", ASSIGNERS)
@given(scene=scenes(max_queries=12))
def test_images_and_prediction_sets_are_assigned_as_if_they_were_alone(name: str, scene: Scene) -> None:
    together = scene.assign(name)
    logits, boxes, targets = scene.logits, scene.boxes, scene.targets
    for prediction_set, image in itertools.product(range(len(logits)), range(len(targets))):
        scene.logits, scene.boxes, scene.targets = logits, boxes, targets
        scene.keep(prediction_set, image)
        alone = scene.assign(name)
        assert torch.equal(alone.target_index[0, 0], together.target_index[prediction_set, image])
        torch.testing.assert_close(alone.quality[0, 0], together.quality[prediction_set, image])


@given(scenes(max_queries=12, max_images=1))
def test_each_rule_takes_no_more_queries_than_it_says(scene: Scene) -> None:
    overlap = overlaps(scene)
    taken = {name: scene.assign(name).target_index[:, 0] for name in ASSIGNERS}  # (P, Q)
    inside = centers_inside(scene)
    for box in range(scene.padded.counts[0]):
        assert ((taken["alignment"] == box).sum(-1) <= 4).all()
        assert ((taken["atss"] == box).sum(-1) <= 5).all()
        assert inside[..., box][taken["atss"] == box].all() and inside[..., box][taken["sim_ota"] == box].all()
        best = (overlap[..., box] * inside[..., box]).topk(min(4, overlap.shape[1]), dim=1).values
        assert ((taken["sim_ota"] == box).sum(-1) <= best.sum(-1).floor().clamp(min=1)).all()


@given(SEEDS, st.integers(0, 5), st.integers(1, 12))
def test_max_iou_gives_a_query_to_the_box_that_wants_it_most(seed: int, count: int, num_queries: int) -> None:
    scene = Scene(seed, [count], num_queries)
    overlap = overlaps(scene)[0]  # (Q, G)
    taken = scene.assign("max_iou").target_index[0, 0].tolist()
    # Whom nobody overlaps has no best query, and no score here is so small that it makes a query background.
    assume(((overlap == 0) | (overlap > 1e-3)).all())
    best = (overlap == overlap.amax(0)) & (overlap > 0)
    for query, box in enumerate(taken):
        wanted_by = best[query] if best[query].any() else overlap[query] >= 0.3
        expected = int(overlap[query].where(wanted_by, -1).argmax()) if wanted_by.any() else -1
        assert box == expected


def overlaps(scene: Scene) -> Tensor:
    boxes, wanted = cxcywh_to_xyxy(scene.boxes[:, 0]), cxcywh_to_xyxy(scene.padded.boxes[0])
    return iou(boxes[:, :, None], wanted[None, None], eps=1e-12)  # (P, Q, G)


def centers_inside(scene: Scene) -> Tensor:
    corners = cxcywh_to_xyxy(scene.padded.boxes[0])[None, None]
    center = scene.boxes[:, 0, :, None, :2]
    return ((center > corners[..., :2]) & (center < corners[..., 2:])).all(-1)


@pytest.mark.parametrize("name", ASSIGNERS)
@given(
    rows=st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 4), min_size=1, max_size=6),
    scores=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=6, max_size=6),
    wanted=st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 4), max_size=6),
)
def test_ties_empty_boxes_and_certain_scores_are_no_trouble(
    name: str, rows: list[tuple], scores: list[float], wanted: list[tuple]
) -> None:
    boxes = torch.tensor(rows)[None, None]
    labels = torch.arange(len(wanted)) % NUM_LABELS
    padded = pad_targets([{"class_labels": labels, "boxes": torch.tensor(wanted).reshape(-1, 4)}], boxes.device)
    probabilities = torch.tensor(scores[: len(rows)])[None, None, :, None].expand(1, 1, -1, NUM_LABELS)
    given_to = ASSIGNERS[name](probabilities, boxes, class_labels=padded.class_labels[None], targets=padded)
    assert given_to.quality.isfinite().all() and given_to.iou.isfinite().all()
    assigned = given_to.target_index >= 0
    assert (probabilities[..., 0][assigned] > 0).all() and (given_to.iou[assigned] > 0).all()
    matches = MATCHER(probabilities.logit(1e-6), boxes, class_labels=padded.class_labels[None], targets=padded)
    assert len(matches.query_index) == min(len(rows), len(wanted))


# ---- Mining by cost


@given(st.lists(COSTS, min_size=1, max_size=30), RULES)
def test_the_threshold_lies_among_the_costs_and_keeps_the_least(costs: list[float], rule: str) -> None:
    values = torch.tensor(costs)
    threshold = fit_cost_threshold(values, rule=rule)
    assert min(costs) <= threshold <= max(costs)
    assert (values <= threshold).any()
    if rule == "densest":
        assert threshold in costs


@given(st.lists(COSTS, min_size=2, max_size=30))
def test_the_mixture_is_one(costs: list[float]) -> None:
    mixture = fit_cost_mixture(torch.tensor(costs), rule="mean")
    if min(costs) == max(costs):
        assert mixture is None
    else:
        assert mixture is not None
        assert sum(mixture.weights) == pytest.approx(1) and min(mixture.weights) >= 0
        assert mixture.means[0] <= mixture.means[1] and min(mixture.variances) > 0
        assert math.isfinite(sum(mixture.variances))


# Of few whole numbers, many samples are equally dense.
@given(
    st.lists(COSTS | st.integers(-2, 9).map(float), min_size=1, max_size=20), RULES, st.randoms(use_true_random=False)
)
@example([1.0, 9.0, -1.0], "densest", random.Random(5))
def test_the_threshold_does_not_depend_on_the_order(costs: list[float], rule: str, rng: random.Random) -> None:
    again = rng.sample(costs, len(costs))
    assert fit_cost_threshold(torch.tensor(again), rule=rule) == fit_cost_threshold(torch.tensor(costs), rule=rule)


@given(st.lists(st.integers(-400, 800), min_size=1, max_size=20), st.integers(-1000, 1000))
def test_costs_that_all_rise_lift_the_threshold_as_much(eighths: list[int], shift: int) -> None:
    costs = torch.tensor(eighths, dtype=torch.float64) / 8  # exact in float32, before and after
    before = fit_cost_threshold(costs.float(), rule="mean")
    after = fit_cost_threshold((costs + shift).float(), rule="mean")
    assert after - shift == pytest.approx(before, abs=1e-2)


@given(COSTS, st.integers(1, 10), RULES)
def test_equal_costs_are_their_own_threshold(cost: float, count: int, rule: str) -> None:
    assert fit_cost_threshold(torch.full((count,), cost), rule=rule) == cost
    assert fit_cost_threshold(torch.empty(0), rule=rule) == -math.inf


@given(st.lists(st.lists(st.floats(width=32), max_size=5), max_size=4), RULES)
def test_boxes_without_a_query_have_no_say_and_other_bad_costs_are_counted(
    images: list[list[float]], rule: str
) -> None:
    costs = [torch.tensor(image, dtype=torch.float32) for image in images]
    gathered = gather_costs(costs)
    kept = [cost for image in images for cost in image if cost != math.inf]
    assert torch.equal(gathered.nan_to_num(7), torch.tensor(kept, dtype=torch.float32).nan_to_num(7))
    bad = sum(not math.isfinite(cost) for cost in kept)
    if bad:
        with pytest.raises(ValueError, match=f"^{bad} of {len(kept)} costs"):
            fit_cost_threshold(gathered, rule=rule)


@given(
    st.lists(st.lists(st.tuples(COSTS | st.just(math.inf), st.booleans()), max_size=5), max_size=4),
    THRESHOLDS,
    THRESHOLDS,
)
def test_a_higher_threshold_mines_more_and_confident_rows_always_stay(
    images: list[list[tuple[float, bool]]], first: float, second: float
) -> None:
    costs = [torch.tensor([cost for cost, _ in image]) for image in images]
    confident = [torch.tensor([flag for _, flag in image], dtype=torch.bool) for image in images]
    low, high = (mine_pseudo_labels(costs, confident, value) for value in sorted((first, second)))
    for fewer, more, cost, flag in zip(low, high, costs, confident, strict=True):
        assert (fewer <= more).all() and (flag <= fewer).all()
        assert not more[cost.isinf() & ~flag].any()


@given(scenes())
def test_matched_costs_are_those_of_the_best_matching(scene: Scene) -> None:
    costs = matched_costs(scene.logits[0], scene.boxes[0], scene.targets, MATCHER)  # type: ignore[arg-type]
    table, matches = scene.cost()[0], scene.match()
    for image, cost in enumerate(costs):
        expected = torch.full((scene.padded.counts[image],), math.inf)
        for query, box in pairs_of(matches, image=image):
            expected[box] = table[image, query, box]
        torch.testing.assert_close(cost, expected, rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(0, 5), max_size=10), st.integers(0, 12))
def test_the_k_best_scores_are_kept(scores: list[int], k: int) -> None:
    labels = PseudoLabels(
        boxes_xyxy=torch.zeros(len(scores), 4),
        class_labels=torch.zeros(len(scores), dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float32),
    )
    (kept,) = keep_top_k([labels], k)
    assert int(kept.sum()) == min(k, len(scores))
    assert min(labels.scores[kept].tolist(), default=9) >= max(labels.scores[~kept].tolist(), default=-9)
