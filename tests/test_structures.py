import pytest
import torch

from semidetr_hf.structures import LabeledBatch, PseudoLabels, SemiBatch, Target, UnlabeledBatch, View


def view(num_images: int) -> View:
    return View(
        pixel_values=torch.zeros(num_images, 3, 8, 8),
        pixel_mask=torch.ones(num_images, 8, 8, dtype=torch.int64),
        image_sizes=torch.full((num_images, 2), 8),
        homographies=torch.eye(3, dtype=torch.float64).expand(num_images, 3, 3),
    )


def test_rows_of_pseudo_labels_by_mask_and_by_index() -> None:
    labels = PseudoLabels(
        boxes_xyxy=torch.arange(12.0).view(3, 4),
        class_labels=torch.tensor([5, 6, 7]),
        scores=torch.tensor([0.9, 0.5, 0.1]),
    )
    kept = labels[torch.tensor([True, False, True])]
    assert kept.class_labels.tolist() == [5, 7]
    assert kept.boxes_xyxy.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    turned = labels[torch.tensor([2, 0])]
    assert len(turned) == 2
    assert turned.class_labels.tolist() == [7, 5]
    nothing = labels[torch.zeros(3, dtype=torch.bool)]
    assert len(nothing) == 0
    assert nothing.boxes_xyxy.shape == (0, 4)


def test_pixels_move_and_what_is_reckoned_with_stays_on_the_cpu() -> None:
    targets: list[Target] = [{"class_labels": torch.tensor([1]), "boxes": torch.rand(1, 4)}]
    batch = SemiBatch(
        labeled=LabeledBatch(view=view(1), targets=targets, image_ids=["a"]),
        unlabeled=UnlabeledBatch(weak=view(2), strong=view(2), image_ids=[1, 2]),
    )
    moved = batch.to("meta")
    assert moved.unlabeled is not None
    views = [moved.labeled.view, moved.unlabeled.weak, moved.unlabeled.strong]
    assert {tensor.device.type for each in views for tensor in (each.pixel_values, each.pixel_mask)} == {"meta"}
    stay = [tensor for each in views for tensor in (each.image_sizes, each.homographies)]
    assert {tensor.device.type for tensor in (*stay, *moved.labeled.targets[0].values())} == {"cpu"}
    assert (moved.labeled.image_ids, moved.unlabeled.image_ids) == (["a"], [1, 2])
    assert [len(each) for each in views] == [1, 2, 2]
    # The original is left as it was.
    assert batch.labeled.view.pixel_values.device.type == "cpu"


def test_a_batch_without_unlabeled_images_moves_too() -> None:
    batch = SemiBatch(labeled=LabeledBatch(view=view(1), targets=[], image_ids=[]))
    assert batch.to("cpu").unlabeled is None


@pytest.mark.gpu
def test_pixels_are_pinned_for_the_device() -> None:
    batch = LabeledBatch(view=view(1), targets=[], image_ids=[]).pin_memory()
    assert batch.view.pixel_values.is_pinned() and batch.view.pixel_mask.is_pinned()
    pair = UnlabeledBatch(weak=view(2), strong=view(2), image_ids=[1, 2]).pin_memory()
    assert pair.weak.pixel_values.is_pinned() and pair.strong.pixel_values.is_pinned()
