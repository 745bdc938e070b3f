"""Stopping between two steps: what a cluster sends before it takes a machine away, and Ctrl-C."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any, Self

from accelerate import Accelerator

from semidetr_hf.training.processes import on_any_process


class StopSignals:
    """Within the `with` block, SIGTERM and SIGINT are remembered instead of ending the process at once.

    A SIGINT after the first signal acts as if there were no block. A SIGTERM does not: launchers such as torchrun and
    `timeout` pass it on to processes that have got it already, and who means it has SIGKILL. Outside of the main
    thread, where Python takes no signal handlers, nothing is changed.

    Attributes:
        received: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGTERM, signal.SIGINT):
                # Ignored by who started this process, as `nohup` and `&` do: so it stays.
                if signal.getsignal(kind) is not signal.SIG_IGN:
                    self._previous[kind] = signal.signal(kind, self._remember)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for kind, handler in self._previous.items():
            signal.signal(kind, handler)
        self._previous = {}

    def on_any_process(self, accelerator: Accelerator) -> str | None:
        """Return the name of the signal that came on any process, None without: all end after the same step."""
        if not on_any_process(accelerator, self.received is not None):
            return None
        return "SIGTERM" if self.received is None else self.received.name

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = signal.Signals(number)
        signal.signal(signal.SIGINT, self._previous.get(signal.SIGINT, signal.SIG_IGN))
        text = f"\n{self.received.name}: the run ends after this step, with a checkpoint; Ctrl-C ends it at once\n"
        # Not by logging or print: the signal may have come in the midst of one, which must not be entered twice.
        with contextlib.suppress(OSError):  # without a terminal the checkpoint is still worth writing
            os.write(2, text.encode())
