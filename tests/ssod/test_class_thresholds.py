import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from semidetr_hf.ssod.class_thresholds import HIGHEST, STEPS, WINDOW, ClassThresholds, smoothed_rates
from semidetr_hf.structures import PseudoLabels


def found(*pairs: tuple[int, float]) -> PseudoLabels:
    """Detections of one image as (class, score); boxes do not matter here."""
    return PseudoLabels(
        boxes_xyxy=torch.zeros(len(pairs), 4),
        class_labels=torch.tensor([label for label, _ in pairs], dtype=torch.int64),
        scores=torch.tensor([score for _, score in pairs], dtype=torch.float32),
    )


def test_rates_by_hand() -> None:
    # 6 + 0 boxes in 3 images are 2 per image; with one more of each class 7 : 1, scaled to 2 in all.
    assert smoothed_rates([6, 0], 3) == pytest.approx([1.75, 0.25])


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.integers(1, 100))
def test_smoothing_keeps_the_sum_and_the_order(counts: list[int], num_images: int) -> None:
    rates = smoothed_rates(counts, num_images)
    assert sum(rates) == pytest.approx(sum(counts) / num_images)
    assert sorted(range(len(counts)), key=counts.__getitem__) == sorted(range(len(counts)), key=rates.__getitem__)


@pytest.mark.parametrize(("counts", "num_images"), [([], 3), ([1, 2], 0)])
def test_rates_of_nothing_are_refused(counts: list[int], num_images: int) -> None:
    with pytest.raises(ValueError, match=f"{len(counts)} classes in {num_images} images"):
        smoothed_rates(counts, num_images)


def test_thresholds_by_hand() -> None:
    thresholds = ClassThresholds([1.0, 0.5], lowest=0.05)
    images = [found((0, 0.7), (0, 0.6), (1, 0.3)), found((0, 0.5), (0, 0.2), (1, 0.8))]
    # Two images. Of class 0 one box an image is expected, that is two: 0.7 and 0.6, and 0.5 is the first too many. Of
    # class 1 half a box an image, that is one: 0.8, and 0.3 is too many. Thresholds are the next step of 1 / 200.
    assert_close(thresholds(images), torch.tensor([0.505, 0.305]))
    assert find(thresholds, images) == [[0.7, 0.6], [0.8]]


def find(thresholds: ClassThresholds, images: list[PseudoLabels]) -> list[list[float]]:
    bars = thresholds.thresholds()
    return [
        [
            round(score, 4)
            for image in images
            for label, score in zip(image.class_labels.tolist(), image.scores.tolist(), strict=True)
            if label == wanted and score >= bars[wanted]
        ]
        for wanted in range(len(bars))
    ]


def test_without_an_image_the_bar_is_at_its_highest() -> None:
    thresholds = ClassThresholds([1.0, 2.0, 3.0], lowest=0.05)
    assert_close(thresholds.thresholds(), torch.full((3,), HIGHEST))
    assert_close(thresholds([]), torch.full((3,), HIGHEST))


def test_images_without_detections_lower_the_bar_to_the_lowest() -> None:
    thresholds = ClassThresholds([1.0], lowest=0.05)
    assert thresholds([found(), found()]).tolist() == pytest.approx([0.05])


def test_more_sure_detections_than_expected_are_all_used() -> None:
    thresholds = ClassThresholds([0.5], lowest=0.05)
    assert thresholds([found((0, 1.0), (0, 0.99))]).tolist() == pytest.approx([HIGHEST])


def test_two_images_at_once_or_one_after_the_other() -> None:
    images = [found((0, 0.7), (1, 0.31)), found((1, 0.8))]
    at_once, one_by_one = ClassThresholds([0.5, 0.5], lowest=0.0), ClassThresholds([0.5, 0.5], lowest=0.0)
    at_once(images)
    for image in images:
        one_by_one([image])
    # The older image counts 1 / WINDOW less.
    assert_close(one_by_one.histogram, at_once.histogram, rtol=1.1 / WINDOW, atol=0)
    assert_close(one_by_one.num_images, torch.tensor(2 - 1 / WINDOW))


def test_old_images_are_forgotten() -> None:
    thresholds = ClassThresholds([1.0], lowest=0.0)
    early = thresholds([found((0, 0.3), (0, 0.3))] * 100)
    late = thresholds([found((0, 0.9), (0, 0.8))] * 10 * WINDOW)
    # Two of 0.3 are one too many; later 0.9 is wanted, and 0.8 is not.
    assert_close(early, torch.tensor([0.305]))
    assert_close(late, torch.tensor([0.805]))


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1, width=32)), max_size=30), st.floats(0.1, 5))
def test_an_image_gets_no_more_labels_of_a_class_than_expected(pairs: list[tuple[int, float]], rate: float) -> None:
    thresholds = ClassThresholds([rate] * 3, lowest=0.0)
    bars = thresholds([found(*pairs)])
    assert_close((bars * STEPS).round(), bars * STEPS)
    for label in range(3):
        # Scores of a step are not told apart; from HIGHEST on all are taken.
        taken = [score for own, score in pairs if own == label and score >= bars[label] + 1e-6]
        assert len(taken) <= rate or bars[label] == pytest.approx(HIGHEST)


def test_what_was_seen_is_part_of_the_state() -> None:
    before, after = ClassThresholds([1.0, 1.0], lowest=0.0), ClassThresholds([1.0, 1.0], lowest=0.0)
    before([found((0, 0.7), (0, 0.4), (1, 0.2))])
    after.load_state_dict(before.state_dict())
    assert_close(after.thresholds(), before.thresholds())


def test_a_lowest_bar_above_the_highest_is_refused() -> None:
    with pytest.raises(ValueError, match="lowest=0.95: must be from 0 to 0.9"):
        ClassThresholds([1.0], lowest=0.95)
