from typing import Any

import pytest
import torch
from recorded import load_recorded
from safetensors.torch import load_model, save_model
from tiny import tiny_batch, tiny_model
from torch import nn

from semidetr_hf.model.decoder_queries import DecoderQueries
from semidetr_hf.ssod.schedule import StageSchedule
from semidetr_hf.ssod.teacher import EMATeacher
from semidetr_hf.structures import View

RULES: dict[str, Any] = {"iou_threshold": 0.6, "min_score": 0.01, "max_detections": 300}


def weak_view(num_images: int = 2) -> View:
    pixel_values, pixel_mask, _ = tiny_batch(num_images)
    sizes = torch.tensor([[64, 96], [64, 72]])[:num_images]
    homographies = torch.eye(3, dtype=torch.float64).expand(num_images, 3, 3)
    return View(pixel_values=pixel_values, pixel_mask=pixel_mask, image_sizes=sizes, homographies=homographies)


def small_network(state: dict[str, torch.Tensor]) -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    network.load_state_dict(state, strict=False)
    return network


def test_update_by_hand() -> None:
    student = nn.Linear(1, 1)
    nn.init.constant_(student.weight, 1.0)
    teacher = EMATeacher(student)  # type: ignore[arg-type]  # any module can be averaged
    weight = teacher.detector.get_parameter("weight")
    nn.init.constant_(student.weight, 2.0)
    teacher.update(student, momentum=0.75)  # type: ignore[arg-type]
    assert weight.item() == 1.25  # 0.75 * 1 + 0.25 * 2
    teacher.update(student, momentum=0.0)  # type: ignore[arg-type]
    assert weight.item() == 2.0
    nn.init.constant_(student.weight, 9.0)
    teacher.update(student, momentum=1.0)  # type: ignore[arg-type]
    assert weight.item() == 2.0
    assert teacher.num_updates == 3


def test_trajectory_as_recorded_from_the_released_code() -> None:
    recorded = load_recorded("ema.npz")["trajectory"]
    schedule = StageSchedule(max_ema_momentum=float(recorded["momentum"]))
    names = list(recorded["initial_teacher"])
    teacher = EMATeacher(small_network({n: recorded["initial_teacher"][n] for n in names}))  # type: ignore[arg-type]
    for student_state, expected in zip(recorded["student"], recorded["teacher"], strict=True):
        student = small_network(student_state)
        teacher.update(student, schedule.ema_momentum(teacher.num_updates))  # type: ignore[arg-type]
        state = teacher.detector.state_dict()
        for name in names:
            # Here we differ on purpose: buffers are copied from the student, the released code leaves them alone.
            wanted = student_state[name] if "running" in name else expected[name]
            torch.testing.assert_close(state[name], wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        recorded["teacher"][-1]["1.running_mean"], recorded["initial_teacher"]["1.running_mean"]
    )


def test_buffers_are_copied() -> None:
    student = tiny_model()
    teacher = EMATeacher(student)
    buffers = [name for name, _ in student.named_buffers() if "running_mean" in name]
    assert buffers
    student.train()
    student(*tiny_batch()[:2])
    assert any(not torch.equal(student.get_buffer(n), teacher.detector.get_buffer(n)) for n in buffers)
    teacher.update(student, momentum=0.9)
    assert all(torch.equal(student.get_buffer(n), teacher.detector.get_buffer(n)) for n in buffers)


def test_the_first_update_of_a_schedule_copies_the_student() -> None:
    student = tiny_model(seed=1)
    teacher = EMATeacher(tiny_model(seed=2))
    teacher.update(student, StageSchedule().ema_momentum(0))
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(teacher.detector.get_parameter(name), parameter.detach())


def test_a_running_average_of_equal_students_is_the_student() -> None:
    teacher = EMATeacher(tiny_model())
    for t in range(5):
        teacher.update(tiny_model(), StageSchedule().ema_momentum(t))
    for name, parameter in tiny_model().named_parameters():
        torch.testing.assert_close(teacher.detector.get_parameter(name), parameter.detach())


def test_it_is_a_copy_without_gradients_that_stays_in_evaluation_mode() -> None:
    student = tiny_model().train()
    teacher = EMATeacher(student)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert {p.data_ptr() for p in teacher.parameters()}.isdisjoint(p.data_ptr() for p in student.parameters())
    for mode in (True, False):
        teacher.train(mode)
        assert not any(module.training for module in teacher.modules())
    nn.ModuleDict({"teacher": teacher, "student": student}).train()
    assert not any(module.training for module in teacher.modules())
    assert student.training


def test_the_student_has_no_gradient_after_an_update() -> None:
    student = tiny_model()
    teacher = EMATeacher(student)
    teacher.update(student, 0.5)
    assert all(parameter.grad is None for parameter in student.parameters())
    assert all(parameter.grad_fn is None for parameter in teacher.parameters())


def test_the_number_of_updates_is_part_of_the_state() -> None:
    student = tiny_model(seed=1)
    teacher = EMATeacher(student)
    for _ in range(3):
        teacher.update(student, 0.5)
    other = EMATeacher(tiny_model(seed=2))
    other.load_state_dict(teacher.state_dict())
    assert other.num_updates == 3
    for name, parameter in teacher.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter)


def test_detections_lie_in_their_image_and_have_no_gradient() -> None:
    teacher = EMATeacher(tiny_model())
    view = weak_view()
    detections = teacher.detect(teacher.encode(view), view, **RULES)
    assert len(detections) == 2
    for found, (height, width) in zip(detections, view.image_sizes.tolist(), strict=True):
        assert len(found) > 0
        assert bool((found.boxes_xyxy >= 0).all())
        assert bool((found.boxes_xyxy <= torch.tensor([width, height, width, height])).all())
        assert not found.scores.requires_grad


def test_two_images_are_labeled_as_each_alone() -> None:
    teacher = EMATeacher(tiny_model())
    pixel_values, pixel_mask, _ = tiny_batch(2)
    pixel_mask = torch.ones_like(pixel_mask)  # equal sizes: padding changes group norms

    def detect(rows: slice) -> list:
        count = len(pixel_mask[rows])
        view = View(
            pixel_values=pixel_values[rows],
            pixel_mask=pixel_mask[rows],
            image_sizes=torch.tensor([[64, 96]] * count),
            homographies=torch.eye(3, dtype=torch.float64).expand(count, 3, 3),
        )
        return teacher.detect(teacher.encode(view), view, **RULES)

    for i, together in enumerate(detect(slice(0, 2))):
        [alone] = detect(slice(i, i + 1))
        assert together.class_labels.tolist() == alone.class_labels.tolist()
        torch.testing.assert_close(together.boxes_xyxy, alone.boxes_xyxy, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(together.scores, alone.scores, rtol=1e-4, atol=1e-5)


def test_a_bar_above_every_score_leaves_nothing() -> None:
    teacher = EMATeacher(tiny_model())
    view = weak_view(1)
    [found] = teacher.detect(teacher.encode(view), view, **(RULES | {"min_score": 1.0}))
    assert len(found) == 0


def test_a_student_of_another_shape_is_refused() -> None:
    with pytest.raises((KeyError, RuntimeError)):
        EMATeacher(tiny_model()).update(tiny_model(decoder_layers=1), 0.5)


def some_queries(num_images: int = 2, group_sizes: tuple[int, ...] = (3, 3)) -> DecoderQueries:
    generator = torch.Generator().manual_seed(4)
    count = sum(group_sizes)
    return DecoderQueries(
        content=torch.randn(num_images, count, 32, generator=generator, requires_grad=True),
        reference_logits=torch.randn(num_images, count, 4, generator=generator),
        group_sizes=group_sizes,
    )


def test_answers_are_the_states_of_the_extra_queries_in_every_layer() -> None:
    teacher = EMATeacher(tiny_model())
    encoded, queries = teacher.encode(weak_view()), some_queries()
    states = teacher.answer(encoded, queries)
    assert states.shape == (2, 2, 6, 32)
    assert not states.requires_grad
    decoded = teacher.detector.model.decode(encoded, queries).intermediate_hidden_states  # (B, P, N + Q, D)
    torch.testing.assert_close(states, decoded[:, :, :6].transpose(0, 1))


def test_groups_of_queries_are_answered_as_each_alone() -> None:
    teacher = EMATeacher(tiny_model())
    encoded, queries = teacher.encode(weak_view()), some_queries()
    together = teacher.answer(encoded, queries)
    for part in (slice(0, 3), slice(3, 6)):
        alone = DecoderQueries(queries.content[:, part], queries.reference_logits[:, part], (3,))
        torch.testing.assert_close(together[:, :, part], teacher.answer(encoded, alone), rtol=1e-4, atol=1e-5)


def test_no_query_has_no_answer_and_answers_change_no_detection() -> None:
    teacher = EMATeacher(tiny_model())
    view = weak_view()
    encoded = teacher.encode(view)
    before = teacher.detect(encoded, view, **RULES)
    assert teacher.answer(encoded, some_queries(group_sizes=())).shape == (2, 2, 0, 32)
    teacher.answer(encoded, some_queries())
    for first, second in zip(before, teacher.detect(encoded, view, **RULES), strict=True):
        assert torch.equal(first.boxes_xyxy, second.boxes_xyxy)


def test_the_number_of_updates_survives_a_file_of_tensors(tmp_path) -> None:
    teacher = EMATeacher(tiny_model())
    for _ in range(3):
        teacher.update(tiny_model(seed=1), 0.5)
    save_model(teacher, str(tmp_path / "teacher.safetensors"))
    other = EMATeacher(tiny_model(seed=2))
    load_model(other, str(tmp_path / "teacher.safetensors"))
    assert other.num_updates == 3
    assert type(other.num_updates) is int
    for name, tensor in teacher.detector.state_dict().items():
        assert torch.equal(tensor, other.detector.state_dict()[name])


# ---- How it computes


def test_it_computes_in_inference_mode_and_what_it_detects_can_be_trained_with() -> None:
    teacher, view = EMATeacher(tiny_model()), weak_view()
    encoded = teacher.encode(view)
    assert encoded.memory.is_inference()
    for found in teacher.detect(encoded, view, **RULES | {"min_score": 0.0}):
        assert len(found) > 0
        assert found.boxes_xyxy.device.type == "cpu" and not found.boxes_xyxy.is_inference()
        # Losses keep boxes for their backward pass, which inference tensors refuse.
        prediction = found.boxes_xyxy.clone().requires_grad_()
        (prediction * found.boxes_xyxy).sum().backward()


def test_low_precision_is_that_of_the_computation_not_of_weights_and_boxes() -> None:
    view = weak_view()
    exact, low = EMATeacher(tiny_model()), EMATeacher(tiny_model(), torch.bfloat16)
    assert {parameter.dtype for parameter in low.parameters()} == {torch.float32}
    encoded = low.encode(view)
    assert {level.dtype for level in encoded.pyramid} == {torch.bfloat16}
    assert encoded.proposal_box_logits.dtype == torch.float32
    error = (encoded.memory.float() - exact.encode(view).memory).abs().max()
    assert 0 < error < 0.1
    found = low.detect(encoded, view, **RULES)
    assert all(labels.boxes_xyxy.dtype == labels.scores.dtype == torch.float32 for labels in found)


def test_without_a_precision_of_its_own_it_takes_that_of_the_student() -> None:
    teacher, view = EMATeacher(tiny_model()), weak_view()
    assert teacher.encode(view).pyramid[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher.encode(view).pyramid[0].dtype == torch.bfloat16
