"""Where the gradients of one step go, also in low precision."""

from typing import Any

import pytest
import torch
from tiny_step import WEIGHTS, build, mirrored, semi_batch, total
from torch import Tensor
from torch.testing import assert_close

from semidetr_hf.ssod.objective import SemiDetrObjective
from semidetr_hf.ssod.pseudo_labels import to_targets
from semidetr_hf.ssod.rules import ConsistencyRules
from semidetr_hf.structures import Stage


@pytest.mark.parametrize("stage", Stage)
def test_gradients_reach_every_part_and_nothing_of_the_teacher(stage: Stage) -> None:
    objective, teacher = build()
    before = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
    total(objective, objective(semi_batch(), teacher, stage, WEIGHTS)).backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], parameter) for name, parameter in teacher.named_parameters())


@pytest.mark.parametrize("source", ["teacher", "exchanged"])
def test_consistency_alone_trains_decoder_encoder_backbone_and_projector(source: Any) -> None:
    objective, teacher = build(consistency=ConsistencyRules(source=source))
    losses = objective(mirrored(semi_batch()), teacher, Stage.ONE_TO_MANY, WEIGHTS)
    sum(losses.consistency.values(), torch.zeros(())).backward()
    trained = {name for name, p in objective.named_parameters() if p.grad is not None and p.grad.any()}
    for part in ("student.model.decoder.layers", "student.model.encoder", "student.model.backbone", "projector"):
        everything = {name for name, _ in objective.named_parameters() if name.startswith(part)}
        assert everything <= trained, sorted(everything - trained)
    assert not any(name.startswith("student.class_head") for name in trained)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_only_student_and_projector_are_trained_by_the_objective() -> None:
    objective, _ = build()
    assert objective.projector is not None
    expected = [*objective.student.parameters(), *objective.projector.parameters()]
    assert {id(p) for p in objective.parameters()} == {id(p) for p in expected}


def decoder_gradients(objective: SemiDetrObjective, loss: Tensor) -> dict[str, Tensor]:
    objective.zero_grad()
    loss.backward()
    parts = ("model.decoder", "class_head", "model.query_content")
    found = {name: p.grad for name, p in objective.student.named_parameters() if name.startswith(parts)}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def test_the_mining_pass_neither_reads_nor_fills_the_weight_cache_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch before its own repair, weights cast without gradient would serve, and starve, the pass that trains."""
    objective, teacher = build()
    caching: list[tuple[bool, bool, torch.dtype]] = []
    decode = objective.student.decode

    def spy(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        caching.append((torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), dtype))
        return decode(*args, **kwargs)

    monkeypatch.setattr(objective.student, "decode", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        objective(semi_batch(), teacher, Stage.ONE_TO_MANY, WEIGHTS)
    bf16 = torch.bfloat16
    assert caching == [(True, True, bf16), (False, False, bf16), (True, True, bf16)]
    caching.clear()
    objective(semi_batch(), teacher, Stage.ONE_TO_MANY, WEIGHTS)
    assert [dtype for _, _, dtype in caching] == [torch.float32] * 3


def test_mining_under_autocast_leaves_every_weight_of_the_decoder_its_gradient() -> None:
    """Also where no other pass of the step has cast the weights before."""
    objective, teacher = build()
    unlabeled = semi_batch().unlabeled
    assert unlabeled is not None
    strong = unlabeled.strong
    found = []
    for mines in (False, True):
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            candidates, _ = objective.find_candidates(teacher, teacher.encode(unlabeled.weak), unlabeled)
            encoded = objective.student.encode(strong.pixel_values, strong.pixel_mask)
            if mines:
                sure = [torch.ones(len(pair), dtype=torch.bool) for pair in candidates]
                assert objective.mine(encoded, candidates, sure, strong).threshold is not None
            targets = to_targets([pair.strong for pair in candidates], strong)
            predictions, _ = objective.decode(encoded, targets, denoise=True)
            loss = objective.student.weigh(objective.compare(predictions, targets, Stage.ONE_TO_ONE))
        found.append(decoder_gradients(objective, loss))
    for name, gradient in found[1].items():
        assert_close(gradient, found[0][name], msg=f"the gradient of {name} differs")


@pytest.mark.parametrize("stage", Stage)
def test_a_whole_step_under_autocast_has_the_gradients_of_one_that_does_not_mine(stage: Stage) -> None:
    objective, teacher = build()  # every candidate is confident: filters change nothing but the mining pass
    found = []
    for candidate_filter in ("none", "cost"):
        objective.consistency = ConsistencyRules(candidate_filter=candidate_filter)
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = objective(semi_batch(), teacher, stage, WEIGHTS)
        found.append(decoder_gradients(objective, total(objective, losses)))
    for name, gradient in found[1].items():
        assert_close(gradient, found[0][name], msg=f"the gradient of {name} differs")
