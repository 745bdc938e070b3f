from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model
from torch import nn

from semidetr_hf.training import processes
from semidetr_hf.training.processes import (
    digest,
    fingerprint,
    from_main_process,
    gather_from_all,
    on_any_process,
    require_same,
)


def test_one_process_asks_nobody(monkeypatch) -> None:
    for name in ("gather_object", "broadcast_object_list"):
        monkeypatch.setattr(processes, name, lambda _value: pytest.fail("exchanged"))
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "reduce", lambda *_args, **_options: pytest.fail("exchanged"))
    value = {"a": object()}
    assert gather_from_all(accelerator, value) == [value]
    assert from_main_process(accelerator, value) is value
    assert (on_any_process(accelerator, True), on_any_process(accelerator, False)) == (True, False)
    require_same(accelerator, value)


class ThreeProcesses(SimpleNamespace):
    """The second of three; the other two raise `others` flags."""

    num_processes = 3
    device = torch.device("cpu")
    others = 0.0

    def reduce(self, flag: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        return flag + self.others


@pytest.mark.parametrize(
    ("own", "others", "expected"), [(False, 0, False), (True, 0, True), (False, 1, True), (True, 2, True)]
)
def test_a_flag_of_any_process_is_one_of_all(own: bool, others: int, expected: bool) -> None:
    assert on_any_process(ThreeProcesses(others=others), own) is expected  # type: ignore[arg-type]


def test_what_processes_do_not_agree_on_is_named(monkeypatch) -> None:
    def gathers(*values: dict[str, Any]) -> None:
        monkeypatch.setattr(processes, "gather_object", lambda own: [*own, *values])

    accelerator: Any = ThreeProcesses()
    mine = {"run.seed": 0, "the labeled images": "a", "torch": "2"}
    gathers(dict(mine), dict(mine))
    require_same(accelerator, mine)
    gathers(dict(mine), mine | {"run.seed": 1, "torch": "3"})
    with pytest.raises(ValueError, match=r"rank 0 and 2 differ in run\.seed, torch; start all processes"):
        require_same(accelerator, mine)
    gathers({"run.seed": 0}, mine)
    with pytest.raises(ValueError, match=r"rank 0 and 1 differ in the labeled images, torch"):
        require_same(accelerator, mine)


def test_everybody_gets_the_value_of_the_main_process(monkeypatch) -> None:
    monkeypatch.setattr(processes, "broadcast_object_list", lambda values: ["of the main process"] * len(values))
    assert from_main_process(ThreeProcesses(), "own") == "of the main process"  # type: ignore[arg-type]


def test_a_fingerprint_tells_single_bits_apart_and_nothing_else() -> None:
    first, second = tiny_model(seed=3), tiny_model(seed=3)
    assert fingerprint(first) == fingerprint(second) == fingerprint(first.train())
    assert fingerprint(tiny_model(seed=4)) != fingerprint(first)
    with torch.no_grad():
        bias = second.class_head.bias
        bias[0] = torch.nextafter(bias[0], bias[0] + 1)
    assert fingerprint(second) != fingerprint(first)


def test_a_fingerprint_depends_on_names_and_takes_any_format() -> None:
    plain, named = nn.Sequential(nn.Linear(2, 2)), nn.Module()
    named.other = plain[0]
    assert fingerprint(plain) != fingerprint(named)
    assert fingerprint(nn.Linear(2, 2).bfloat16()) != ""
    scalar = nn.Module()
    scalar.weight = nn.Parameter(torch.tensor(1.0))  # without a dimension
    assert len(fingerprint(scalar)) == 16


def test_digests_follow_the_order_and_the_kind_of_what_they_sum_up() -> None:
    assert digest([1, 2]) == digest([1, 2])
    assert len({digest(value) for value in ([1, 2], [2, 1], ["1", "2"], (1, 2))}) == 4
