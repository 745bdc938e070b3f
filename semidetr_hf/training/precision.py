"""The number format in which the teacher computes.

The teacher has no gradients that small numbers could be lost from: bfloat16 halves its time and changes scores in the
third digit.
"""

import torch

from semidetr_hf.training.run_config import RunConfig

# Names that Linux has for instructions that multiply matrices of bfloat16.
CPU_DESCRIPTION = "/proc/cpuinfo"
_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def teacher_dtype(config: RunConfig, device: torch.device) -> torch.dtype | None:
    """Return the dtype for the autocast of the teacher, None for that of the student."""
    if config.teacher_precision == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else None
    return torch.bfloat16 if config.teacher_precision == "bf16" else None


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 in hardware; where it does not, bfloat16 is slower than float32.

    On a CPU this is known under Linux only; elsewhere the answer is no.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    try:
        with open(CPU_DESCRIPTION, encoding="utf-8") as lines:
            flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        return False
    return not _CPU_FLAGS.isdisjoint(flags.split())
