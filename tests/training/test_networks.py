"""Which network is the best of a run, and what is written of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from small_runs import SIZE, detector, same, source_of, weights
from transformers import AutoModelForObjectDetection

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.structures import Stage
from semidetr_hf.training import networks as networks_module
from semidetr_hf.training.evaluation import DetectionMetrics
from semidetr_hf.training.networks import BestNetwork, RunNetworks


def metrics(ap: float) -> DetectionMetrics:
    names = [name for name in DetectionMetrics.__dataclass_fields__ if not name.startswith("per_class")]
    return DetectionMetrics(**dict.fromkeys(names, 0.0) | {"ap": ap}, per_class={"0": ap})


@pytest.fixture
def networks(digits, tmp_path: Path) -> RunNetworks:
    return RunNetworks(
        accelerator=Accelerator(cpu=True),
        networks={"student": detector(1), "teacher": detector(2)},
        evaluated=["student", "teacher"],
        image_processor=SemiDetrImageProcessor(size={"shortest_edge": SIZE, "longest_edge": SIZE}),
        nms_iou=0.55,
        val=source_of(digits, 2),
        batch_size=2,
        folder=tmp_path,
    )


@pytest.fixture
def evaluations(monkeypatch) -> dict[str, Any]:
    """`aps`: what the next evaluations find; `nms`: what they suppressed."""
    found: dict[str, Any] = {"aps": [], "nms": []}

    def evaluate(_network: Any, processor: Any, *_args: Any, **_options: Any) -> tuple[DetectionMetrics, list]:
        found["nms"].append(processor.nms_iou)
        return metrics(found["aps"].pop(0)), []

    monkeypatch.setattr(networks_module, "evaluate", evaluate)
    return found


def saved(folder: Path) -> dict:
    return weights(AutoModelForObjectDetection.from_pretrained(folder))


def test_the_best_is_the_better_network_at_the_best_evaluation(networks, evaluations, tmp_path) -> None:
    evaluations["aps"] = [0.2, 0.3, 0.1, 0.3, 0.4, 0.4]
    seen = []
    for step in (1, 2, 3):
        assert networks.evaluate(step, Stage.ONE_TO_ONE) is networks.metrics
        seen.append((networks.best.metrics.ap, networks.best.network, networks.best.step))
        assert same(saved(tmp_path / "best"), weights(networks.networks[networks.best.network]))
    # Of equal ones the first stays.
    assert seen == [(0.3, "teacher", 1), (0.3, "teacher", 1), (0.4, "student", 3)]
    assert {name: found.ap for name, found in networks.metrics.items()} == {"student": 0.4, "teacher": 0.4}


@pytest.mark.parametrize(
    ("stage", "first", "second"), [(Stage.ONE_TO_MANY, 0.55, None), (Stage.ONE_TO_ONE, None, 0.55)]
)
def test_the_other_way_is_the_one_that_the_stage_does_not_ask_for(networks, evaluations, stage, first, second) -> None:
    evaluations["aps"] = [0.1, 0.2, 0.3, 0.4]
    networks.evaluate(1, stage)
    both = networks.evaluate_other_way(stage)
    assert evaluations["nms"] == [first, first, second, second]
    with_nms, without = ((0.1, 0.2), (0.3, 0.4)) if first is not None else ((0.3, 0.4), (0.1, 0.2))
    assert both == {
        "student/ap_nms": with_nms[0],
        "teacher/ap_nms": with_nms[1],
        "student/ap_no_nms": without[0],
        "teacher/ap_no_nms": without[1],
    }
    # The other way is a comparison, and makes nothing the best.
    assert networks.best.metrics.ap == 0.2


@pytest.mark.parametrize(("stage", "nms_iou"), [(Stage.ONE_TO_MANY, 0.55), (Stage.ONE_TO_ONE, None)])
def test_both_networks_are_written_with_the_suppression_of_the_stage(networks, tmp_path, stage, nms_iou) -> None:
    networks.write(stage)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "teacher"]
    for name, network in networks.networks.items():
        assert same(saved(tmp_path / name), weights(network))
        assert json.loads((tmp_path / name / "preprocessor_config.json").read_text()).get("nms_iou") == nms_iou
    assert networks.image_processor.nms_iou is None


def test_only_the_main_process_writes(networks, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda _self: False))
    networks.write(Stage.ONE_TO_ONE)
    assert list(tmp_path.iterdir()) == []


def test_without_validation_images_there_is_no_evaluation(networks) -> None:
    networks.val = None
    with pytest.raises(ValueError, match=r"validation images: give the trainer `val`"):
        networks.evaluate(1, Stage.ONE_TO_ONE)


def test_the_best_network_survives_a_file() -> None:
    best = BestNetwork(metrics(0.4), "teacher", 7)
    assert BestNetwork.restored(json.loads(json.dumps(best.state()))) == best


def test_a_best_network_that_is_lost_is_written_again_or_given_up(networks, tmp_path, caplog) -> None:
    best = BestNetwork(metrics(0.3), "teacher", 4)
    # The checkpoint is that of the best network: its weights are at hand.
    networks.take_back_best(best, 4, Stage.ONE_TO_ONE, is_kept=True)
    assert networks.best == best
    assert same(saved(tmp_path / "best"), weights(networks.networks["teacher"]))
    (tmp_path / "best").rename(tmp_path / "elsewhere")
    networks.take_back_best(best, 5, Stage.ONE_TO_ONE, is_kept=True)
    assert networks.best == best
    assert "its weights are in the checkpoint of step 4" in caplog.text
    networks.take_back_best(best, 5, Stage.ONE_TO_ONE, is_kept=False)
    assert networks.best is None
    assert "compete for it anew" in caplog.text
    assert not (tmp_path / "best").exists()
