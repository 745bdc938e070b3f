import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from semidetr_hf.ssod.mixing import mix_pseudo_labeled, mixup, mosaic
from semidetr_hf.structures import PseudoLabels, View


def view_of(*images: tuple[float, tuple[int, int]]) -> View:
    """Images of one value and size each, padded with 0 to the largest edges."""
    height, width = max(size[0] for _, size in images), max(size[1] for _, size in images)
    pixels, mask = torch.zeros(len(images), 3, height, width), torch.zeros(len(images), height, width).long()
    for i, (value, (own_height, own_width)) in enumerate(images):
        pixels[i, :, :own_height, :own_width] = value
        mask[i, :own_height, :own_width] = 1
    return View(
        pixel_values=pixels,
        pixel_mask=mask,
        image_sizes=torch.tensor([size for _, size in images]),
        homographies=torch.eye(3, dtype=torch.float64).repeat(len(images), 1, 1),
    )


def labels(label: int, *boxes: list[float]) -> PseudoLabels:
    return PseudoLabels(
        boxes_xyxy=torch.tensor(boxes).reshape(-1, 4),
        class_labels=torch.full((len(boxes),), label),
        scores=torch.ones(len(boxes)),
    )


def test_mixup_by_hand() -> None:
    # A low wide image of 1 and a high narrow one of 3.
    view = view_of((1.0, (4, 8)), (3.0, (6, 4)))
    mixed = mixup(view, [labels(2, [0.0, 0.0, 4.0, 2.0]), labels(5, [2.0, 3.0, 4.0, 6.0])], [0, 1])
    expected = torch.zeros(6, 8)
    expected[:4, :4] = 2.0  # (1 + 3) / 2
    expected[:4, 4:] = 0.5  # (1 + 0) / 2
    expected[4:, :4] = 1.5
    assert_close(mixed.pixel_values, expected.expand(3, 6, 8))
    assert mixed.pixel_mask.all()
    assert mixed.target["class_labels"].tolist() == [2, 5]
    # Of 8 x 6 pixels: center (2, 1), size (4, 2); center (3, 4.5), size (2, 3).
    assert_close(mixed.target["boxes"], torch.tensor([[2 / 8, 1 / 6, 4 / 8, 2 / 6], [3 / 8, 4.5 / 6, 2 / 8, 3 / 6]]))


def test_mixup_leaves_out_the_padding_of_the_batch() -> None:
    view = view_of((1.0, (4, 8)), (3.0, (6, 4)), (9.0, (10, 12)))
    mixed = mixup(view, [labels(0, [0.0, 0.0, 8.0, 4.0])] * 3, [0, 1])
    assert mixed.pixel_mask.shape == (10, 12) and mixed.pixel_mask.sum() == 6 * 8
    assert mixed.pixel_mask[:6, :8].all()
    assert_close(mixed.target["boxes"][0], torch.tensor([0.5, 2 / 6, 1.0, 4 / 6]))


def test_mosaic_by_hand() -> None:
    # Canvas of 8 x 8, quarters of 4 x 4: the images of 8 x 8 are halved, the one of 4 x 8 becomes 2 x 4.
    view = view_of((1.0, (8, 8)), (2.0, (8, 8)), (3.0, (4, 8)), (4.0, (8, 8)))
    whole = [0.0, 0.0, 8.0, 8.0]
    boxes = [labels(0, whole), labels(1, whole), labels(2, [0.0, 0.0, 8.0, 4.0]), labels(3, [2.0, 4.0, 6.0, 8.0])]
    mixed = mosaic(view, boxes, [0, 1, 2, 3])
    expected = torch.zeros(8, 8)
    expected[:4, :4], expected[:4, 4:], expected[4:6, :4], expected[4:, 4:] = 1, 2, 3, 4
    assert_close(mixed.pixel_values, expected.expand(3, 8, 8))
    assert mixed.pixel_mask.all() and mixed.pixel_mask.shape == (8, 8)
    assert mixed.target["class_labels"].tolist() == [0, 1, 2, 3]
    # xyxy: (0, 0, 4, 4), (4, 0, 8, 4), (0, 4, 4, 6), (4 + 1, 4 + 2, 4 + 3, 4 + 4), all of 8.
    expected_boxes = [[2, 2, 4, 4], [6, 2, 4, 4], [2, 5, 4, 2], [6, 7, 2, 2]]
    assert_close(mixed.target["boxes"], torch.tensor(expected_boxes) / 8)


def test_boxes_that_are_lost_in_a_mosaic_are_dropped() -> None:
    view = view_of(*[(1.0, (8, 8))] * 4)
    # Two pixels become one, which is not more than one.
    mixed = mosaic(view, [labels(0, [0.0, 0.0, 2.0, 8.0], [0.0, 0.0, 3.0, 8.0])] + [labels(0)] * 3, [0, 1, 2, 3])
    assert_close(mixed.target["boxes"], torch.tensor([[0.75, 2.0, 1.5, 4.0]]) / 8)


@pytest.mark.parametrize(("mixing", "counts"), [("mixup", (4, 0)), ("mosaic", (0, 2)), ("both", (4, 2))])
def test_number_of_mixed_images(mixing: str, counts: tuple[int, int]) -> None:
    for batch, expected in ((8, sum(counts)), (9, sum(counts)), (1, 0)):
        mixed = mix_pseudo_labeled(view_of(*[(1.0, (8, 8))] * batch), [labels(0)] * batch, mixing)
        assert (0 if mixed is None else len(mixed.pixel_values)) == expected
        if mixed is not None:
            assert len(mixed.targets) == len(mixed.pixel_mask) == expected
            assert all(target["boxes"].shape == (0, 4) for target in mixed.targets)


def test_without_mixing_or_images_there_is_nothing() -> None:
    assert mix_pseudo_labeled(view_of(*[(1.0, (8, 8))] * 8), [labels(0)] * 8, "none") is None


def test_every_image_is_in_one_pair() -> None:
    # Image i has the value 2^i, so a sum tells which ones are in it.
    view = view_of(*[(float(2**i), (4, 4)) for i in range(6)])
    mixed = mix_pseudo_labeled(view, [labels(i, [0.0, 0.0, 2.0, 2.0]) for i in range(6)], "mixup")
    assert mixed is not None
    members = [[i for i in range(6) if int(2 * image[0, 0, 0]) & 2**i] for image in mixed.pixel_values]
    assert sorted(sum(members, [])) == list(range(6)) and all(len(pair) == 2 for pair in members)
    # The labels are those of the pictures.
    assert [sorted(target["class_labels"].tolist()) for target in mixed.targets] == members


def test_the_draw_follows_the_seed() -> None:
    view, found = view_of(*[(float(i), (4, 4)) for i in range(8)]), [labels(0)] * 8

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        mixed = mix_pseudo_labeled(view, found, "both")
        assert mixed is not None
        return mixed.pixel_values

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
