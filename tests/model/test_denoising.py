"""Denoising queries against hand-worked numbers and recorded draws of official DINO."""

import pytest
import torch
from recorded import load_recorded
from torch import nn
from torch.testing import assert_close

from semidetr_hf.model.denoising import DenoisingNoise, build_denoising_queries, draw_noise, num_denoising_groups


def target(*boxes, labels=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"class_labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.int64), "boxes": boxes}


def silent(batch, groups, slots):
    shape = (batch, groups, 2, slots)
    return DenoisingNoise(
        torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.int64), torch.zeros(*shape, 4)
    )


@pytest.fixture
def table():
    """Row i of the label table is (i, i, i)."""
    embedding = nn.Embedding(5, 3)
    with torch.no_grad():
        embedding.weight.copy_(torch.arange(5.0)[:, None].expand(5, 3))
    return embedding


def test_number_of_groups():
    # 100 // m pairs, at least one group.
    expected = {1: 100, 3: 33, 7: 14, 33: 3, 50: 2, 51: 1, 100: 1, 101: 1, 150: 1}
    assert {m: num_denoising_groups(100, m) for m in expected} == expected
    assert num_denoising_groups(100, 0) == 0


def test_layout_by_hand(table):
    targets = [
        target([0.5, 0.5, 0.2, 0.4], [0.4, 0.4, 0.2, 0.2], labels=[3, 1]),
        target([0.5, 0.5, 0.2, 0.2], labels=[2]),
    ]
    result = build_denoising_queries(targets, table, noise=silent(2, 2, 2), box_noise=0.4, eps=1e-5)
    # m = 2, so a group is [positive 0, positive 1 | negative 0, negative 1]; the second image leaves slot 1 empty.
    assert result.queries.content[:, :, 0].tolist() == [[3, 1, 3, 1] * 2, [2, 0, 2, 0] * 2]
    assert result.queries.group_sizes == (4, 4)
    # Positive slots of image 0: 0, 1, 4, 5; of image 1: 0, 4.
    triples = list(
        zip(*(t.tolist() for t in (result.image_index, result.query_index, result.target_index)), strict=True)
    )
    assert triples == [(0, 0, 0), (0, 1, 1), (0, 4, 0), (0, 5, 1), (1, 0, 0), (1, 4, 0)]
    # Without noise the reference is the box itself; an empty slot is logit 0.
    assert_close(result.queries.reference_logits[0, 0].sigmoid(), targets[0]["boxes"][0])
    assert not result.queries.reference_logits[1, [1, 3, 5, 7]].any()


def test_box_noise_by_hand(table):
    noise = silent(1, 1, 1)
    noise.box_shift[0, 0, 0, 0] = torch.tensor([1.0, -0.5, 0.0, 0.5])
    boxes = [target([0.5, 0.5, 0.2, 0.4])]
    result = build_denoising_queries(boxes, table, noise=noise, box_noise=0.4, eps=1e-5)
    # Corners (.4, .3, .6, .7), half size (.1, .2): shifts .4 * (.1, -.1, 0, .1) = (.04, -.04, 0, .04) ->
    # (.44, .26, .6, .74) = centre (.52, .5), size (.16, .48).
    assert_close(result.queries.reference_logits[0, 0].sigmoid(), torch.tensor([0.52, 0.5, 0.16, 0.48]))


def test_noised_label_and_clipping(table):
    noise = silent(1, 1, 1)
    noise.flips_label[0, 0, 1, 0] = True
    noise.random_labels[:] = 4
    noise.box_shift[0, 0, 1, 0] = -2.0
    result = build_denoising_queries(
        [target([0.1, 0.1, 0.2, 0.2], labels=[1])], table, noise=noise, box_noise=1.0, eps=1e-3
    )
    assert result.queries.content[0, :, 0].tolist() == [1, 4]  # only the negative copy got the random label
    # Corners (0, 0, .2, .2) move by -.2 to (-.2, -.2, 0, 0), clipped to a point at 0; the bound of the logit is eps.
    assert_close(result.queries.reference_logits[0, 1].sigmoid(), torch.full((4,), 0.001), rtol=0.01, atol=0)


@pytest.mark.parametrize("counts", [(0,), (0, 0)])
def test_no_boxes_still_depend_on_the_label_table(table, counts):
    targets = [target() for _ in counts]
    result = build_denoising_queries(targets, table, noise=silent(len(counts), 0, 0), box_noise=0.4, eps=1e-5)
    assert len(result.queries) == 0 and result.num_groups == 0 and len(result.query_index) == 0
    result.queries.content.sum().backward()
    assert table.weight.grad is not None and not table.weight.grad.any()


def test_batch_of_two_equals_two_of_one(table):
    targets = [target([0.5, 0.5, 0.2, 0.4], labels=[3]), target([0.3, 0.6, 0.2, 0.2], labels=[2])]
    noise = draw_noise(2, 3, 1, num_labels=5, label_noise=0.5, device=torch.device("cpu"))
    together = build_denoising_queries(targets, table, noise=noise, box_noise=0.4, eps=1e-5)
    for i in range(2):
        one = DenoisingNoise(*(part[i : i + 1] for part in vars(noise).values()))
        alone = build_denoising_queries(targets[i : i + 1], table, noise=one, box_noise=0.4, eps=1e-5)
        assert_close(together.queries.content[i], alone.queries.content[0])
        assert_close(together.queries.reference_logits[i], alone.queries.reference_logits[0])
        assert torch.equal(together.query_index[together.image_index == i], alone.query_index)


def test_noise_keeps_its_ranges():
    noise = draw_noise(2, 50, 8, num_labels=5, label_noise=0.5, device=torch.device("cpu"))
    size = noise.box_shift.abs()
    assert size[:, :, 0].max() < 1 <= size[:, :, 1].min() and size.max() < 2
    assert (noise.box_shift > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    # Half of the label noise: 1600 draws with p = 0.25 have a standard deviation of 0.011.
    assert noise.flips_label.float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert set(noise.random_labels.unique().tolist()) == set(range(5))


def recorded_noise(case):
    """Order the recorded draws, made per repetition for all boxes of the batch, by image, group, half and box."""
    counts = [len(labels) for labels in case["labels"]]
    draws = [draw[1] for draw in case["dino"]["draws"]]
    groups, total = int(case["dino"]["num_groups"]), sum(counts)
    noise = silent(len(counts), groups, max(counts))
    chosen = (draws[0] < float(case["label_noise_ratio"]) * 0.5).view(2 * groups, total)
    labels = torch.zeros(2 * groups, total, dtype=torch.int64)
    labels[chosen] = draws[1]
    sign, part = (draw.view(2 * groups, total, 4) for draw in draws[2:])
    start = 0
    for i, count in enumerate(counts):
        columns = slice(start, start + count)
        for repetition in range(2 * groups):
            group, half = divmod(repetition, 2)
            noise.flips_label[i, group, half, :count] = chosen[repetition, columns]
            noise.random_labels[i, group, half, :count] = labels[repetition, columns]
            shift = (sign[repetition, columns] * 2 - 1) * (part[repetition, columns] + half)
            noise.box_shift[i, group, half, :count] = shift
        start += count
    return noise


@pytest.mark.parametrize("index", [0, 1])  # the second has an image without boxes
def test_recorded_queries_of_official_dino(index):
    case = load_recorded("query_masks.npz")["denoising"][index]
    table = nn.Embedding.from_pretrained(case["label_table"])
    targets = [
        {"class_labels": labels, "boxes": boxes} for labels, boxes in zip(case["labels"], case["boxes"], strict=True)
    ]
    scale = float(case["box_noise_scale"])
    result = build_denoising_queries(targets, table, noise=recorded_noise(case), box_noise=scale, eps=1e-3)
    assert_close(result.queries.content, case["dino"]["query_label"])
    assert_close(result.queries.reference_logits, case["dino"]["query_box_unact"], rtol=1e-4, atol=5e-5)
    if index == 0:
        # The other case was recorded with dn_number = 2, and official DINO reads a number below 50 as half the number
        # of groups; here it is always the number of pairs.
        assert result.num_groups == num_denoising_groups(int(case["dn_number"]), 2)
