import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from semidetr_hf.training.config import OptimizerConfig
from semidetr_hf.training.optimizer import build_optimizer, build_scheduler, learning_rate_factor


class Detector(nn.Module):
    """A backbone with a frozen part, and a head whose name only resembles the backbone's."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.backbone = nn.ModuleDict({"stem": nn.Linear(2, 2), "stage": nn.Linear(2, 2)})
        self.model.backbone.stem.requires_grad_(False)
        self.backbone_projection = nn.Linear(2, 3)
        self.norm = nn.LayerNorm(3)


def test_two_groups_hold_every_trainable_parameter_once() -> None:
    detector = Detector()
    optimizer = build_optimizer(detector, OptimizerConfig(learning_rate=2e-4, weight_decay=0.01))
    backbone, rest = optimizer.param_groups
    stage = list(detector.model.backbone.stage.parameters())
    assert [id(p) for p in backbone["params"]] == [id(p) for p in stage]
    others = [*detector.backbone_projection.parameters(), *detector.norm.parameters()]
    assert {id(p) for p in rest["params"]} == {id(p) for p in others}
    assert len(rest["params"]) == len(others)
    # 2e-4 x 0.1
    assert backbone["lr"] == pytest.approx(2e-5)
    assert rest["lr"] == 2e-4
    # On norms and biases too, as in the released code.
    assert backbone["weight_decay"] == rest["weight_decay"] == 0.01


def test_first_step_moves_each_group_by_its_learning_rate() -> None:
    detector = Detector()
    optimizer = build_optimizer(detector, OptimizerConfig(learning_rate=1e-2, weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    for parameter in detector.parameters():
        parameter.grad = torch.full_like(parameter, 3.0) if parameter.requires_grad else None
    optimizer.step()
    moved = {name: (before[name] - p.detach()).abs().max().item() for name, p in detector.named_parameters()}
    # The first Adam step is lr * g / (|g| + eps) = lr.
    assert moved["backbone_projection.weight"] == pytest.approx(1e-2, rel=1e-4)
    assert moved["model.backbone.stage.weight"] == pytest.approx(1e-3, rel=1e-3)
    assert moved["model.backbone.stem.weight"] == 0


def test_fused_on_the_cpu_gives_the_plain_result() -> None:
    torch.manual_seed(0)
    fused_model, plain_model = nn.Linear(3, 2), nn.Linear(3, 2)
    plain_model.load_state_dict(fused_model.state_dict())
    fused = build_optimizer(fused_model, OptimizerConfig())
    assert fused.param_groups[0]["fused"] is True
    plain = torch.optim.AdamW(plain_model.parameters(), lr=1e-4, weight_decay=1e-4, fused=False)
    inputs = torch.randn(4, 3)
    for _ in range(5):
        for model, optimizer in ((fused_model, fused), (plain_model, plain)):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(fused_model.weight, plain_model.weight)


def test_fused_is_left_out_where_there_is_no_kernel() -> None:
    assert build_optimizer(nn.Linear(2, 2, device="meta"), OptimizerConfig()).param_groups[0]["fused"] is False


def test_refuses_a_wholly_frozen_model() -> None:
    with pytest.raises(ValueError, match="Linear has no parameter with requires_grad=True"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimizerConfig())


def test_frozen_backbone_leaves_an_empty_group() -> None:
    detector = Detector()
    detector.model.requires_grad_(False)
    assert [len(group["params"]) for group in build_optimizer(detector, OptimizerConfig()).param_groups] == [0, 4]


@pytest.mark.parametrize(
    ("step", "expected"),
    # Drops at 6 and 8, warm-up over 4: 1/4, 2/4, 3/4, 4/4, 1 ... 0.1 from 6, 0.01 from 8.
    [(0, 0.25), (1, 0.5), (3, 1.0), (5, 1.0), (6, 0.1), (7, 0.1), (8, 0.01), (99, 0.01)],
)
def test_step_schedule_by_hand(step: int, expected: float) -> None:
    factor = learning_rate_factor(step, schedule="step", num_steps=10, warmup_steps=4, drop_steps=(6, 8))
    assert factor == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    # Warm-up over 2, then (1 + cos(pi * (step - 2) / 8)) / 2: a quarter of the way (1 + 0.7071) / 2, half way 1 / 2.
    [(0, 0.5), (1, 1.0), (2, 1.0), (4, (1 + math.sqrt(0.5)) / 2), (6, 0.5), (10, 0.0), (12, 0.0)],
)
def test_cosine_schedule_by_hand(step: int, expected: float) -> None:
    factor = learning_rate_factor(step, schedule="cosine", num_steps=10, warmup_steps=2)
    assert factor == pytest.approx(expected, abs=1e-12)


def test_constant_schedule_without_warmup_is_one() -> None:
    assert {learning_rate_factor(step, schedule="constant", num_steps=5) for step in range(9)} == {1.0}


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule='linear': must be constant, step or cosine"):
        learning_rate_factor(0, schedule="linear", num_steps=5)


@given(
    schedule=st.sampled_from(["constant", "step", "cosine"]),
    num_steps=st.integers(1, 50),
    warmup=st.integers(0, 49),
    drops=st.lists(st.integers(1, 60), max_size=3),
)
def test_factor_never_rises_after_the_warmup(schedule: str, num_steps: int, warmup: int, drops: list[int]) -> None:
    warmup = min(warmup, num_steps - 1)
    factors = [
        learning_rate_factor(step, schedule=schedule, num_steps=num_steps, warmup_steps=warmup, drop_steps=drops)
        for step in range(warmup, num_steps + 5)
    ]
    assert all(0 <= later <= earlier <= 1 for earlier, later in zip(factors, factors[1:], strict=False))


def test_scheduler_keeps_the_ratio_of_the_groups_and_can_be_resumed() -> None:
    config = OptimizerConfig(lr_schedule="cosine", warmup_steps=3)

    def run(steps: int, state: dict | None = None) -> tuple[list, dict]:
        optimizer = build_optimizer(Detector(), config)
        scheduler = build_scheduler(optimizer, config, num_steps=12)
        if state is not None:
            scheduler.load_state_dict(state)
        rates = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            rates.append(scheduler.get_last_lr())
        return rates, scheduler.state_dict()

    whole, _ = run(12)
    first, state = run(5)
    second, _ = run(7, state)
    assert first + second == whole
    assert [backbone for backbone, _ in whole] == pytest.approx([0.1 * rest for _, rest in whole])


@pytest.mark.parametrize("num_steps", [0, 3])
def test_scheduler_needs_steps_after_the_warmup(num_steps: int) -> None:
    config = OptimizerConfig(warmup_steps=3)
    with pytest.raises(ValueError, match=f"num_steps={num_steps}"):
        build_scheduler(build_optimizer(Detector(), config), config, num_steps=num_steps)
