import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from accelerate import Accelerator

from semidetr_hf.training import interruption
from semidetr_hf.training.interruption import StopSignals

KINDS = (signal.SIGTERM, signal.SIGINT)


def send(kind: signal.Signals) -> None:
    os.kill(os.getpid(), kind)


@pytest.fixture(autouse=True)
def seen() -> Iterator[list[int]]:
    """What the handlers saw that were there before; no signal of these tests may end pytest."""
    seen: list[int] = []
    before = {kind: signal.signal(kind, lambda number, _frame: seen.append(number)) for kind in KINDS}
    yield seen
    for kind, handler in before.items():
        signal.signal(kind, handler)


def handlers() -> list[Any]:
    return [signal.getsignal(kind) for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_signal_is_remembered_and_the_next_ctrl_c_acts(seen, capfd, kind: signal.Signals) -> None:
    accelerator = Accelerator(cpu=True)
    with StopSignals() as signals:
        assert signals.received is None
        assert signals.on_any_process(accelerator) is None
        send(kind)
        assert (signals.received, seen) == (kind, [])
        assert signals.on_any_process(accelerator) == kind.name
        # Launchers pass SIGTERM on to those that have it already.
        send(signal.SIGTERM)
        assert (signals.received, seen) == (kind, [])
        send(signal.SIGINT)
        assert (signals.received, seen) == (kind, [signal.SIGINT])
    assert signals.on_any_process(accelerator) == kind.name
    [line] = capfd.readouterr().err.split("\n")[1:-1]
    assert line.startswith(f"{kind.name}: the run ends after this step")


def test_nothing_is_said_without_a_signal(capfd) -> None:
    with StopSignals():
        pass
    assert capfd.readouterr() == ("", "")


def test_without_a_place_to_say_it_the_signal_is_remembered_all_the_same(monkeypatch) -> None:
    def fail(*_args: object) -> int:
        raise OSError("no terminal")

    with StopSignals() as signals:
        monkeypatch.setattr(os, "write", fail)
        send(signal.SIGTERM)
        monkeypatch.undo()
        assert signals.received is signal.SIGTERM


def test_a_signal_on_another_process_is_one_of_all(monkeypatch) -> None:
    monkeypatch.setattr(interruption, "on_any_process", lambda _accelerator, _flag: True)
    with StopSignals() as signals:
        assert signals.on_any_process(Accelerator(cpu=True)) == "SIGTERM"


@pytest.mark.parametrize("received", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_handlers_of_before_are_back_afterwards(seen, received: bool, fails: bool) -> None:
    before = handlers()
    try:
        with StopSignals():
            assert not set(handlers()) & set(before)
            if received:
                send(signal.SIGTERM)
            if fails:
                raise RuntimeError("of the block")
    except RuntimeError:
        assert fails
    assert handlers() == before
    send(signal.SIGINT)
    assert seen == [signal.SIGINT]


def test_python_itself_is_left_with_its_keyboard_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopSignals() as signals:
        send(signal.SIGINT)
        assert signals.received is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_thread_takes_no_handlers(seen) -> None:
    before = handlers()
    found: list[Any] = []

    def run() -> None:
        with StopSignals() as signals:
            found.extend([handlers(), signals.received])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before, None]
    assert handlers() == before


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals() as signals:
        send(signal.SIGINT)
        assert signals.received is None
        send(signal.SIGTERM)
        assert signals.received is signal.SIGTERM
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
