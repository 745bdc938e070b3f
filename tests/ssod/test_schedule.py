import pytest
from recorded import load_recorded

from semidetr_hf.ssod.schedule import StageSchedule
from semidetr_hf.structures import LossWeights, Stage


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


def test_stages_by_hand() -> None:
    schedule = StageSchedule(one_to_many_steps=3)
    many, one = Stage.ONE_TO_MANY, Stage.ONE_TO_ONE
    assert [schedule.stage_at(step) for step in range(5)] == [many, many, many, one, one]
    # Without a first stage, and by default, matching is one-to-one from the start.
    assert StageSchedule().stage_at(0) is StageSchedule(one_to_many_steps=0).stage_at(10) is one


def test_the_first_stage_includes_the_burn_in() -> None:
    schedule = StageSchedule(burn_in_steps=2, one_to_many_steps=3)
    assert [(schedule.uses_unlabeled(step), schedule.stage_at(step).value) for step in range(4)] == [
        (False, "one_to_many"),
        (False, "one_to_many"),
        (True, "one_to_many"),
        (True, "one_to_one"),
    ]


@pytest.mark.parametrize("step", [0, 7, 59_999, 60_000, 10**9])
@pytest.mark.parametrize("one_to_many_steps", [0, 1, 60_000])
def test_the_stage_changes_once_and_never_back(step: int, one_to_many_steps: int) -> None:
    schedule = StageSchedule(one_to_many_steps=one_to_many_steps)
    if schedule.stage_at(step) is Stage.ONE_TO_ONE:
        assert schedule.stage_at(step + 1) is Stage.ONE_TO_ONE
    assert (schedule.stage_at(step) is Stage.ONE_TO_MANY) == (step < one_to_many_steps)


@pytest.mark.parametrize(
    ("scales", "second_stage", "expected"),
    [
        (False, True, {"one_to_many": 0.5, "one_to_one": 0.5}),
        (False, False, {"one_to_many": 0.5, "one_to_one": 0.0}),
        # The released code multiplies by the weight of unlabeled images: 0.5 * 4.
        (True, True, {"one_to_many": 2.0, "one_to_one": 2.0}),
        (True, False, {"one_to_many": 2.0, "one_to_one": 0.0}),
    ],
)
def test_weight_of_the_consistency_loss_by_hand(scales: bool, second_stage: bool, expected: dict[str, float]) -> None:
    schedule = StageSchedule(consistency_weight=0.5, scales_consistency=scales, consistency_in_one_to_one=second_stage)
    assert {stage.value: schedule.loss_weights(stage).consistency for stage in Stage} == expected


@pytest.mark.parametrize(("in_first", "expected"), [(False, [False, True]), (True, [True, True])])
def test_pseudo_labels_are_denoised_in_the_second_stage_and_perhaps_in_the_first(
    in_first: bool, expected: list[bool]
) -> None:
    schedule = StageSchedule(denoises_in_one_to_many=in_first)
    stages = (Stage.ONE_TO_MANY, Stage.ONE_TO_ONE)
    assert [schedule.loss_weights(stage).denoises_pseudo_labels for stage in stages] == expected


def test_default_weights() -> None:
    first, second = (StageSchedule().loss_weights(stage) for stage in (Stage.ONE_TO_MANY, Stage.ONE_TO_ONE))
    assert first == LossWeights(pseudo=4.0, consistency=0.0, denoises_pseudo_labels=False)
    assert second == LossWeights(pseudo=4.0, consistency=0.0, denoises_pseudo_labels=True)
    assert StageSchedule(unsupervised_weight=2.0).loss_weights(Stage.ONE_TO_MANY).pseudo == 2.0
