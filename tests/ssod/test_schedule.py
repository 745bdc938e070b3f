import pytest
from recorded import load_recorded

from semidetr_hf.ssod.schedule import StageSchedule


@pytest.mark.parametrize(
    ("num_updates", "expected"),
    # t / (t + 1) until it passes 0.999.
    [(0, 0), (1, 1 / 2), (2, 2 / 3), (9, 0.9), (99, 0.99), (998, 998 / 999), (999, 0.999), (1000, 0.999)],
)
def test_momentum_by_hand(num_updates: int, expected: float) -> None:
    assert StageSchedule().ema_momentum(num_updates) == pytest.approx(expected, abs=1e-12)


def test_warm_up_by_hand() -> None:
    schedule = StageSchedule(ema_warmup=100)
    # 1 - 101 / (t + 101): t = 0 -> 0, t = 101 -> 1 - 101 / 202 = 1/2, t = 909 -> 1 - 101 / 1010 = 0.9.
    assert [schedule.ema_momentum(t) for t in (0, 101, 909)] == pytest.approx([0, 0.5, 0.9])


@pytest.mark.parametrize("name", ["default", "warm100"])
def test_momentum_as_recorded_from_the_released_code(name: str) -> None:
    recorded = load_recorded("ema.npz")[name]
    schedule = StageSchedule(max_ema_momentum=float(recorded["momentum"]), ema_warmup=int(recorded["warm_up"]))
    ours = [schedule.ema_momentum(step) for step in recorded["steps"].tolist()]
    assert ours == pytest.approx(recorded["momentum_used"].tolist(), abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 1, 500])
def test_momentum_never_falls_and_never_passes_its_maximum(warmup: int) -> None:
    schedule = StageSchedule(max_ema_momentum=0.99, ema_warmup=warmup)
    course = [schedule.ema_momentum(t) for t in range(2000)]
    assert course == sorted(course)
    assert course[0] == 0
    assert max(course) <= 0.99


def test_burn_in() -> None:
    schedule = StageSchedule(burn_in_steps=3)
    assert [schedule.uses_unlabeled(step) for step in range(5)] == [False, False, False, True, True]
    assert [schedule.ends_burn_in(step) for step in range(5)] == [False, False, True, False, False]


def test_no_burn_in() -> None:
    schedule = StageSchedule()
    assert schedule.uses_unlabeled(0)
    assert not any(schedule.ends_burn_in(step) for step in range(5))
