"""Counting the memory of all tensors, on machines without a GPU.

Torch tells of every operation; every tensor it makes counts from then on until nothing holds its storage. What an
operation uses inside itself is not seen, and neither is what the allocator wastes between tensors.

torch's own `torch.distributed._tools.mem_tracker.MemTracker` counts the same (a test compares them), but does not tell
what is kept for the backward pass from what is temporary, nor where in the source a tensor is made.
"""

import sys
import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # bytes, the unit of torch's allocator on CUDA
KINDS = ["parameters", "teacher", "gradients", "optimizer", "inputs", "saved for backward", "temporaries"]


@dataclass
class Peak:
    """The moment when the most memory is in use.

    Attributes:
        size: bytes.
        phase: "forward", "backward" or "update".
        kinds: bytes by kind.
        largest: (kind, operation, place in the source) -> bytes; the places are those of the forward pass.
    """

    size: int
    phase: str
    kinds: dict[str, int]
    largest: dict[tuple[str, str, str], int] = field(default_factory=dict)


class AllocationLog(TorchDispatchMode):
    """Follows the storages of all tensors that operations read or make while it is entered.

    Call `mark` at the start of each phase. Kinds are known afterwards: what lives when the forward pass ends is saved
    for the backward pass, the rest is temporary.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []  # (number of the storage, bytes; negative when it is freed)
        self.origins: list[tuple[str, str]] = []  # by number: operation and place
        self.kinds: dict[int, str] = {}
        self.phases: list[tuple[int, str]] = []  # (first event, name)
        self._numbers: dict[int, int] = {}  # address of a living storage -> number
        self._references: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation and note what it made; also what it reads, which may come from elsewhere (numpy)."""
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, output)):
            # A sparse tensor has no storage; its parts are tensors of their own.
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self._note(leaf, str(func))
        return output

    def _note(self, tensor: Tensor, operation: str) -> int | None:
        """Return the number of the storage of a tensor, None for one without memory of its own."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._numbers or storage.nbytes() == 0:
            return self._numbers.get(address)
        number, size = len(self.origins), -(-storage.nbytes() // BLOCK) * BLOCK

        def free(_reference: weakref.ref) -> None:
            self.events.append((number, -size))
            del self._numbers[address], self._references[number]

        self._numbers[address] = number
        self._references[number] = weakref.ref(storage, free)
        self.origins.append((operation, _place()))
        self.events.append((number, size))
        return number

    def label(self, tensors: Iterable[object], kind: str) -> None:
        """Say of what kind tensors are."""
        for tensor in tensors:
            if isinstance(tensor, Tensor) and (number := self._note(tensor, kind)) is not None:
                self.kinds.setdefault(number, kind)

    def mark(self, phase: str) -> None:
        """Begin a phase."""
        self.phases.append((len(self.events), phase))

    def peak(self) -> Peak:
        """Return the moment of the largest sum of all living storages."""
        total = best = moment = 0
        for i, (_, change) in enumerate(self.events):
            total += change
            if total > best:
                best, moment = total, i
        backward = next((start for start, name in self.phases if name == "backward"), len(self.events))
        saved = self._living(backward)
        kinds: dict[str, int] = dict.fromkeys(KINDS, 0)
        largest: dict[tuple[str, str, str], int] = defaultdict(int)
        for number, size in self._living(moment + 1).items():
            kind = self.kinds.get(number, "saved for backward" if number in saved else "temporaries")
            kinds[kind] += size
            largest[(kind, *self.origins[number])] += size
        phase = [name for start, name in self.phases if start <= moment][-1]
        return Peak(best, phase, kinds, dict(sorted(largest.items(), key=lambda item: -item[1])))

    def _living(self, end: int) -> dict[int, int]:
        """Return the storages that live after so many events, number -> bytes."""
        living: dict[int, int] = {}
        for number, change in self.events[:end]:
            if change > 0:
                living[number] = change
            else:
                del living[number]
        return living


def _place() -> str:
    """Return file and line of the innermost function of the package or of timm that is running; "" if none is."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if {"semidetr_hf", "timm"} & set(path.parts) and path.parent.name != "benchmarks":
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
