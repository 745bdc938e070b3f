"""What several processes must agree on; with one process nothing is exchanged."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

Result = TypeVar("Result")


def on_any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Return whether the flag is set on any process; all processes must ask."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum")
    return bool(total.item() > 0)


def gather_from_all(accelerator: Accelerator, value: Any) -> list[Any]:
    """Return the picklable value of every process, in the order of ranks; all processes must ask."""
    return [value] if accelerator.num_processes == 1 else gather_object([value])


def from_main_process(accelerator: Accelerator, value: Any) -> Any:
    """Return the picklable value of the main process; all processes must ask."""
    return value if accelerator.num_processes == 1 else broadcast_object_list([value])[0]


def on_main_process(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Call a function on the main process and return its picklable value on all; all processes must ask.

    Raises:
        OSError, ValueError: as the function, on every process.
    """
    found: Any = None
    if accelerator.is_main_process:
        try:
            found = function()
        except (OSError, ValueError) as error:
            found = error
    found = from_main_process(accelerator, found)
    if isinstance(found, Exception):
        raise found
    return found


def require_same(accelerator: Accelerator, values: Mapping[str, Any]) -> None:
    """Stop every process unless all of them were given the same.

    Args:
        accelerator: of the run.
        values: what must agree, by a name for the message; compared by `==`.

    Raises:
        ValueError: on every process; names what differs, and between which ranks.
    """
    gathered = gather_from_all(accelerator, dict(values))
    for rank, theirs in enumerate(gathered):
        differing = [name for name, value in gathered[0].items() if theirs.get(name) != value]
        if differing:
            raise ValueError(
                f"the processes of rank 0 and {rank} differ in {', '.join(differing)}; start all processes with the "
                "same settings, files, and versions"
            )


def digest(value: object) -> str:
    """Return a short text that is equal for values with an equal `repr`."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def fingerprint(network: nn.Module) -> str:
    """Return a short text that is equal for networks with the same parameters, bit for bit."""
    sums = hashlib.sha256()
    for name, parameter in network.named_parameters():
        sums.update(name.encode())
        sums.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()[:16]


def is_lost_process(error: RuntimeError) -> bool:
    """Return whether an error says that another process does not answer; that one knows the reason."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
