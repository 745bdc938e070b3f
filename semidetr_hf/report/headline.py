"""The top of a report: what came out, what it took, and on what it ran."""

import os
import platform
import statistics
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.metadata import version

import torch

from semidetr_hf.report.run_folder import RunFolder
from semidetr_hf.training.outcome import SUPERVISED, best_evaluations, gain_over_supervised
from semidetr_hf.training.result import NetworkScore


@dataclass(frozen=True)
class Headline:
    """What came out of a run.

    Attributes:
        scores: best evaluation of `supervised`, `student` and `teacher`, as far as they were evaluated.
        kept: which of them is in `best/`; None where nothing is.
        gain: AP of the better of student and teacher over that of `supervised`; None without the two.
        reasons: why there may be no gain.
    """

    scores: dict[str, NetworkScore]
    kept: str | None
    gain: float | None
    reasons: list[str]


def headline(run: RunFolder) -> Headline:
    """Return what came out of a run: by its `result.json`, or by the logs where that is not written.

    Raises:
        ValueError: if `result.json` is not what a training writes; names it.
    """
    if run.result is not None:
        return _of_result(run)
    own = best_evaluations(run.folder)
    supervised = None
    if run.baseline is not None:
        of_baseline = best_evaluations(run.baseline.folder)
        best = _better(of_baseline)
        supervised = None if best is None else of_baseline[best]
    scores = ({} if supervised is None else {SUPERVISED: supervised}) | own
    kept = _better(own) if "best" in run.networks else None
    return Headline(scores, kept, gain_over_supervised(scores), [])


def _better(scores: dict[str, NetworkScore]) -> str | None:
    return max(scores, key=lambda name: scores[name].ap, default=None)


def _of_result(run: RunFolder) -> Headline:
    result = run.result or {}
    try:
        scores = {name: NetworkScore(**score) for name, score in result["scores"].items()}
        return Headline(scores, result["kept"], result["gain"], result["reasons"])
    except (AttributeError, KeyError, TypeError) as error:
        where, what = run.folder / "result.json", f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: not the result of a training ({what}); move it away") from error


def costs(run: RunFolder) -> list[tuple[str, str]]:
    """Return time and memory of a run as names and texts; empty without `resources.jsonl`."""
    if not run.resources:
        return []
    per_step = statistics.median(row["seconds_per_step"] for row in run.resources)
    waiting = statistics.median(row["waiting"] for row in run.resources)
    memory = max(row["memory_mb"] for row in run.resources)
    found = [
        ("time", str(timedelta(seconds=round(run.resources[-1]["seconds"])))),
        ("time per step", f"{per_step:.3g} s (median)"),
        ("waiting for images", f"{waiting:.0%} of the time (median)"),
        ("memory of the process", f"at most {memory:,.0f} MB when logged"),
    ]
    cuda = [row["cuda_mb"] for row in run.resources if "cuda_mb" in row]
    if cuda:
        found.append(("memory of tensors on the GPU", f"at most {max(cuda):,.0f} MB when logged"))
    return found


def machine() -> list[tuple[str, str]]:
    """Return date, versions and hardware of the machine that writes the report, as names and texts."""
    packages = ("semidetr-hf", "torch", "torchvision", "transformers", "accelerate", "timm")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [
        ("date", date.today().isoformat()),
        ("python", platform.python_version()),
        *((name, version(name)) for name in packages),
        ("system", platform.platform(terse=True)),
        ("processor", f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"),
        ("GPU", ", ".join(gpus) or "none"),
    ]
