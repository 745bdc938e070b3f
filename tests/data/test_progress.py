import io
import sys

import pytest

from semidetr_hf.data import progress
from semidetr_hf.data.progress import with_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("rank", "is_shown"), [(None, True), ("0", True), ("1", False)])
def test_the_first_process_shows_a_bar_with_rate_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, is_shown: bool
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(progress, "QUICK", 0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(with_bar("abc", 3, "reading sizes")) == ["a", "b", "c"]
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert ("reading sizes" in shown and " images/s" in shown and "0/3" in shown) == is_shown
    assert bool(shown) == is_shown


def test_what_is_quick_or_goes_to_a_file_shows_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(with_bar("abc", 3, "reading sizes")) == ["a", "b", "c"]
    assert "reading" not in terminal.getvalue()
    monkeypatch.undo()
    monkeypatch.setattr(progress, "QUICK", 0)
    list(with_bar("abc", 3, "reading sizes"))
    assert capsys.readouterr().err == ""
