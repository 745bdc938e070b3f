import json
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from semidetr_hf.training.metrics import JsonlLog, RunningMeans, flatten


def test_means_by_hand() -> None:
    means = RunningMeans()
    means.update({"loss": torch.tensor(1.0, requires_grad=True), "time": 0.5})
    means.update({"loss": torch.tensor(2.0), "pseudo_loss": 4.0})
    means.update({"loss": torch.tensor(6.0)})
    # loss (1 + 2 + 6) / 3; the other two were given once each.
    assert means.compute() == {"loss": 3.0, "time": 0.5, "pseudo_loss": 4.0}


def test_half_precision_losses_are_summed_in_single() -> None:
    means = RunningMeans()
    for _ in range(1000):
        means.update({"loss": torch.tensor(1.0, dtype=torch.bfloat16)})
    # A bfloat16 sum would stop at 256.
    assert means.compute() == {"loss": 1.0}


def test_averages_are_the_same_numbers_unread() -> None:
    means = RunningMeans()
    for factor in (1.0, 2.0, 6.0):
        means.update({"loss": torch.tensor(factor), "loss_0": torch.tensor(10 * factor), "pseudo_labels": factor})
    means.update({"gradient_norm": torch.tensor(4.0)})
    averages = means.averages()
    assert list(averages) == ["loss", "loss_0", "pseudo_labels", "gradient_norm"]
    assert isinstance(averages["loss"], torch.Tensor) and isinstance(averages["pseudo_labels"], float)
    assert {name: float(value) for name, value in averages.items()} == means.compute()


def test_tensors_are_read_all_at_once() -> None:
    """To read one makes the host wait for the device."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    means = RunningMeans()
    with Reads() as reads:
        for _ in range(3):
            means.update({f"loss_{i}": torch.tensor(float(i)) for i in range(20)})
            means.averages()
    assert reads.count == 0
    assert means.compute()["loss_7"] == 7.0


def test_state_goes_on_bit_for_bit() -> None:
    values = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    whole, first = RunningMeans(), RunningMeans()
    for step, (a, b) in enumerate(values):
        if step == 17:
            resumed = RunningMeans()
            resumed.restore(json.loads(json.dumps(first.state())))
            first = resumed
        for means in (whole, first):
            means.update({"a": a, "b": b, "c": float(a)} if step % 3 else {"a": a})
    assert whole.compute() == first.compute()


def test_numbers_of_a_resumed_run_are_read_together_with_those_of_the_device() -> None:
    """What was read back lies on the CPU. The meta device stands in for a GPU; it has no numbers to read."""
    means = RunningMeans()
    means.restore({"sums": {"a": 0.0}, "counts": {"a": 1}, "unread": [[["a"], [2.0]]]})
    means.update({"b": torch.zeros((), device="meta")})
    with pytest.raises(NotImplementedError, match="meta"):  # not: tensors on two devices
        means.compute()
    means.update({"a": torch.zeros((), device="meta")})
    assert {vector.device.type for vector in means._unread.values()} == {"meta"}


def test_nothing_added_and_reset() -> None:
    means = RunningMeans()
    assert means.compute() == {}
    means.update({"loss": 3.0})
    means.reset()
    assert means.compute() == {}
    means.update({"loss": 5.0})
    assert means.compute() == {"loss": 5.0}


def test_not_a_number_stays_visible_in_the_mean() -> None:
    means = RunningMeans()
    means.update({"loss": float("nan")})
    means.update({"loss": 1.0})
    assert math.isnan(means.compute()["loss"])


def test_log_is_complete_after_every_line_and_is_continued(tmp_path) -> None:
    path = tmp_path / "run" / "log.jsonl"
    rows = [{"step": 1, "loss": 0.1 + 0.2, "lr": 1e-4}, {"step": 2, "val": {"ap": 0.5, "ap_large": None}}]
    log = JsonlLog(path)
    assert log.rows() == []
    log.append(rows[0])
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows[:1]
    JsonlLog(path).append(rows[1])
    assert JsonlLog(path).rows() == rows


def test_cut_off_line_is_removed(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    log = JsonlLog(path)
    log.append({"step": 2})
    assert log.rows() == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_numbers_that_json_cannot_hold(tmp_path, bad: float) -> None:
    log = JsonlLog(tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match=r"log\.jsonl: val\.ap=-?(nan|inf) at step 7 is not finite"):
        log.append({"step": 7, "val": {"ap": bad}})
    assert log.rows() == []


def test_damaged_line_is_named(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: not JSON"):
        JsonlLog(path).rows()


def test_a_configuration_becomes_flat_and_plain() -> None:
    nested = {"data": {"val": None, "short_edges": [64, 96]}, "run": {"seed": 3, "cpu": True, "output_dir": "out"}}
    assert flatten(nested) == {
        "data.val": "None",
        "data.short_edges": "[64, 96]",
        "run.seed": 3,
        "run.cpu": True,
        "run.output_dir": "out",
    }
    assert flatten({}) == flatten({"data": {}}) == {}


# ---- What a resumed run takes up


def test_means_go_on_from_their_state_bit_for_bit() -> None:
    values = [torch.tensor(value) for value in (0.1, 0.7, 1e-3, 12.3)]
    whole, first, second = RunningMeans(), RunningMeans(), RunningMeans()
    for value in values:
        whole.update({"loss": value})
    first.update({"loss": values[0], "mined": 3})
    first.update({"loss": values[1]})
    second.restore(json.loads(json.dumps(first.state())))
    for value in values[2:]:
        second.update({"loss": value})
    assert second.compute() == whole.compute() | {"mined": 3.0}
    # The state is a copy.
    state = first.state()
    first.update({"loss": 5.0})
    assert state["counts"] == {"loss": 2, "mined": 1}


def test_means_over_processes_weigh_every_update_alike() -> None:
    states = [
        {"sums": {"loss": 6.0, "mined": 1.0}, "counts": {"loss": 3, "mined": 1}},
        {"sums": {"loss": 2.0}, "counts": {"loss": 1}},
        RunningMeans().state(),
    ]
    assert RunningMeans.merged(states).compute() == {"loss": 2.0, "mined": 1.0}
    assert RunningMeans.merged([]).compute() == {}


def test_rows_of_later_steps_are_cut(tmp_path) -> None:
    log = JsonlLog(tmp_path / "log.jsonl")
    log.cut_after(0)
    assert not log.path.exists()
    for step in (1, 2, 2, 3):
        log.append({"step": step, "loss": 0.1 + 0.2})
    before = log.path.read_bytes()
    log.cut_after(3)
    assert log.path.read_bytes() == before
    log.cut_after(2)
    assert log.path.read_bytes() == b"".join(before.splitlines(keepends=True)[:3])
    log.cut_after(0)
    assert log.path.read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_that_cannot_be_written_says_so(tmp_path) -> None:
    log = JsonlLog(tmp_path / "run" / "log.jsonl")
    log.path.mkdir()
    with pytest.raises(OSError, match=r"log\.jsonl: cannot be written \(Is a directory\); make room"):
        log.append({"step": 1})
