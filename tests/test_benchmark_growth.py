"""What the benchmarks of memory and growth count: hand-worked sums, and what must grow or shrink."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
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


def test_allocations_by_hand(allocations: ModuleType) -> None:
    weight = torch.randn(256, 256, requires_grad=True)
    batch = torch.randn(128, 256)
    log = allocations.AllocationLog()
    log.label([weight], "parameters")
    log.label([batch], "inputs")
    with log:
        log.mark("forward")
        loss = (batch @ weight).relu().sum()
        log.mark("backward")
        loss.backward()
        log.label([weight.grad], "gradients")
    peak = log.peak()
    # Going back through the product, the gradient of its result (128 x 256) and that of the weight are there; the
    # result of relu is not any more. Loss and its own gradient take a block of 512 bytes each.
    kilobytes = {"parameters": 256, "gradients": 256, "inputs": 128, "saved for backward": 0.5, "temporaries": 128.5}
    assert peak.kinds == {kind: 1024 * kilobytes.get(kind, 0) for kind in allocations.KINDS}
    assert (peak.size, peak.phase) == (1024 * (256 + 256 + 128 + 0.5 + 128.5), "backward")
    assert next(iter(peak.largest)) in {("parameters", "parameters", ""), ("gradients", "aten.mm.default", "")}


def test_allocations_end_with_the_last_tensor_on_a_storage(allocations: ModuleType) -> None:
    with allocations.AllocationLog() as log:
        log.mark("forward")
        first = torch.zeros(1000)  # 4,000 bytes: 8 blocks
        view = first[:10]
        del first
        second = torch.zeros(100)  # 1 block, while the view still holds the first storage
        del view
        third = torch.zeros(1000)
        assert second.numel() + third.numel() == 1100
    assert log.peak().size == 9 * 512
    assert sorted(size for _, size in log.events) == [-4096, 512, 4096, 4096]


def test_allocations_agree_with_those_that_torch_counts(
    allocations: ModuleType, memory: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocations, "BLOCK", 1)  # torch counts bytes on the CPU
    run, tracker = memory.Run(memory.QUICK["nano"], torch.device("cpu")), MemTracker()
    view, targets = run.batch.labeled.view, run.batch.labeled.targets
    labels = [tensor for target in targets for tensor in target.values()]
    tracker.track_external(run.student, run.optimizer, view.pixel_values, view.pixel_mask, *labels)
    # Torch's own cannot follow the sparse tensors of our attention on the CPU.
    with memory.given_attention(memory.sample_by_grid):
        peak = memory.count_step(memory.Run(memory.QUICK["nano"], torch.device("cpu")))
        with tracker:
            run.step()
    # They differ in when a temporary tensor counts as gone.
    counted = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert counted == pytest.approx(peak.size, rel=0.01)


def test_memory_of_a_step_is_counted_by_kind(memory: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "memory.json"
    memory.main(["--quick", "--output", str(output)])
    record = json.loads(output.read_text())
    assert {"command", "seed", "device", "date", "versions", "hardware", "rows", "largest"} <= set(record)
    assert [row["attention"] for row in record["rows"]] == ["grid_sample", "as on the CPU"] * 2
    for row in record["rows"]:
        assert row["estimate"] and not row["extrapolated"]
        assert sum(row[kind] for kind in memory.KINDS) == pytest.approx(row["peak_gb"], abs=0.01)
        assert (row["teacher"] > 0) == ("unlabeled" in row["step"])
    supervised = memory.Run(memory.QUICK["nano"], torch.device("cpu"))
    peak = memory.count_step(supervised)
    weights = sum(-(-p.nbytes // 512) * 512 for p in supervised.parameters)
    # Exactly two moments of every weight that is trained, and a counter of the steps for each.
    assert peak.kinds["optimizer"] == 2 * weights + 512 * len(supervised.parameters)


def test_memory_of_steps_that_are_too_large_follows_a_line(
    memory: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "Run", lambda setting, _device: setting)

    def count_step(setting) -> object:
        kinds = {**dict.fromkeys(memory.KINDS, 0), "parameters": 1000, "temporaries": 3 * setting.pixels}
        return memory.Peak(1000 + 3 * setting.pixels, "backward", kinds)

    monkeypatch.setattr(memory, "count_step", count_step)
    setting = memory.FULL["bf16"]
    expected = 1000 + 3 * 800 * 1333
    for budget, extrapolated in ((expected, False), (expected - 1, True)):
        peak, is_line = memory.count_or_extrapolate(setting, budget)
        assert (peak.size, peak.kinds["parameters"], is_line) == (expected, 1000, extrapolated)


def test_exponents_by_hand(growth: ModuleType, tmp_path: Path) -> None:
    points = [{"value": value, "ms": ms, "mb": mb} for value, ms, mb in [(1, 9, 9), (10, 2.0, 3.0), (40, 8.0, 48.0)]]
    assert (growth.exponent(points, "ms"), growth.exponent(points, "mb")) == (1.0, 2.0)
    output = tmp_path / "growth.json"
    growth.main(["--quick", "--output", str(output)])
    record = json.loads(output.read_text())
    assert {"command", "seed", "base", "date", "versions", "hardware", "exponents", "rows"} <= set(record)
    assert [(row["axis"], row["mode"]) for row in record["exponents"]] == [
        ("classes", "training step"),
        ("classes", "inference"),
        ("unlabeled images of a step", "training step"),
    ]
    one, two = (point["memory_mb"] for point in record["rows"][-2:])
    assert 0 < one < two
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_every_axis_spans_a_factor_of_eight(growth: ModuleType) -> None:
    for axis in growth.AXES:
        assert axis.values[-1] >= 8 * axis.values[0]
        settings = [axis.setting(value) for value in axis.values]
        assert len(set(settings)) == len(settings) >= 4
        # More queries than tokens of the pyramid would grow on paper only.
        tokens = [sum(-(-s.height // stride) * -(-s.width // stride) for stride in (8, 16, 32, 64)) for s in settings]
        assert axis.field != "queries" or all(s.queries <= t for s, t in zip(settings, tokens, strict=True))
