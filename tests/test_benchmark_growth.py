"""What the benchmarks of memory and growth count: hand-worked sums, and what must grow or shrink."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
KB = 1024


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("allocations")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("memory")


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("growth")


def test_nothing_is_no_memory(allocations: ModuleType) -> None:
    with allocations.AllocationLog() as log:
        log.mark("forward")
        empty = torch.zeros(0, 4)
        one = torch.zeros(1)  # a whole block
    assert log.peak().size == allocations.BLOCK
    assert empty.numel() + one.numel() == 1


@pytest.mark.parametrize(("checkpointing", "kept"), [(False, 3 * 64), (True, 64)])
def test_checkpointing_keeps_the_ends_alone(allocations: ModuleType, checkpointing: bool, kept: int) -> None:
    """Three sigmoids of 64 KB: autograd keeps every result; a checkpoint its input, and its last result is held."""
    start = torch.randn(128, 128, requires_grad=True)  # 64 KB

    def thrice(x: Tensor) -> Tensor:
        return x.sigmoid().sigmoid().sigmoid()

    log = allocations.AllocationLog()
    log.label([start], "inputs")
    with log:
        log.mark("forward")
        end = checkpoint(thrice, start, use_reentrant=False) if checkpointing else thrice(start)
        log.mark("backward")
        end.backward(torch.ones_like(end))
    found = log.peak()
    # The largest sum is in the backward pass either way, when all three results are there (again).
    assert found.phase == "backward"
    assert found.kinds["inputs"] == 64 * KB
    assert found.kinds["saved for backward"] == kept * KB


def test_memory_of_inference_by_hand(growth: ModuleType) -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 128, 128))  # 192 KB

        def forward(self, pixels: Tensor, mask: Tensor) -> Tensor:
            return (pixels * self.weight).relu() + mask[:, None]

    view = SimpleNamespace(pixel_values=torch.ones(1, 3, 128, 128), pixel_mask=torch.ones(1, 128, 128))
    run = SimpleNamespace(student=Detector(), batch=SimpleNamespace(labeled=SimpleNamespace(view=view)))
    peak = growth.count_inference(run)
    assert peak.kinds["parameters"] == 192 * KB
    assert peak.kinds["inputs"] == (192 + 64) * KB
    # Two results of 192 KB at a time: product and relu, then relu and sum.
    assert growth.work_bytes(peak) == 2 * 192 * KB


def test_checkpointing_and_fewer_images_need_less(memory: ModuleType) -> None:
    # By grid_sample, which keeps what checkpointing gives up; large enough that the weights' update is not the peak.
    setting = replace(memory.QUICK["nano"], labeled=2, height=128, width=128)
    with memory.given_attention(memory.sample_by_grid):
        plain, checkpointed, one_image = (
            memory.count_step(memory.Run(changed, torch.device("cpu")))
            for changed in (setting, replace(setting, checkpointing=True), replace(setting, labeled=1))
        )
    assert checkpointed.size < 0.9 * plain.size
    assert one_image.size < 0.9 * plain.size
    for kind in ("parameters", "optimizer"):
        assert checkpointed.kinds[kind] == plain.kinds[kind] == one_image.kinds[kind]
    assert plain.kinds["inputs"] == 2 * one_image.kinds["inputs"]


def test_an_axis_changes_one_thing(growth: ModuleType) -> None:
    for axis in growth.AXES:
        base = vars(axis.base)
        for value in axis.values:
            changed = {name for name, found in vars(axis.setting(value)).items() if found != base[name]}
            assert changed <= ({"height", "width"} if axis.field == "edge" else {axis.field})
