"""In which number format the teacher computes."""

import pytest
import torch
from small_runs import configure

from semidetr_hf.training import precision
from semidetr_hf.training.precision import has_fast_bf16, teacher_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("fast", [True, False])
def test_asked_for_it_is_taken_and_auto_looks_at_the_device(monkeypatch, tmp_path, fast: bool) -> None:
    monkeypatch.setattr(precision, "has_fast_bf16", lambda _device: fast)
    found = {
        name: teacher_dtype(configure(tmp_path, run={"teacher_precision": name}).run, CPU)
        for name in ("same", "bf16", "auto")
    }
    assert found == {"same": None, "bf16": torch.bfloat16, "auto": torch.bfloat16 if fast else None}


@pytest.mark.parametrize(
    ("cpuinfo", "fast"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16 sse\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 amx_bf16\n", True),
        ("processor : 0\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor : 0\n", False),
    ],
)
def test_flags_of_the_cpu(monkeypatch, tmp_path, cpuinfo: str, fast: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    monkeypatch.setattr(precision, "CPU_DESCRIPTION", str(file))
    assert has_fast_bf16(CPU) is fast


def test_without_a_description_of_the_cpu_or_on_other_devices_it_is_not_assumed(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(precision, "CPU_DESCRIPTION", str(tmp_path / "nothing"))
    assert not has_fast_bf16(CPU)
    assert not has_fast_bf16(torch.device("meta"))
