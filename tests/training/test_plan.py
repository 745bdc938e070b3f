from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import configure, source_of

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.training.baseline import supervised_baseline
from semidetr_hf.training.batch_scaling import scale_with_batch
from semidetr_hf.training.plan import Plan
from semidetr_hf.training.setup import Sources
from semidetr_hf.training.trial import Estimate


@pytest.fixture
def plan(digits) -> Plan:
    config = configure(
        Path("runs"),
        data={"labeled_batch_size": 2, "unlabeled_batch_size": 6},
        optimizer={"learning_rate": 1e-3},
        schedule={"num_steps": 1000, "burn_in_steps": 200, "one_to_many_steps": 600},
        pseudo_labels={"score_threshold": 0.3},
        recipe={"early_stopping_patience": 5, "scale_with_batch": 4},
        run={"eval_every": 100},
    )
    scaling = scale_with_batch(config, num_processes=2, has_unlabeled=True)
    return Plan(
        asked=config,
        config=scaling.config,
        baseline=supervised_baseline(scaling.config, "runs/out/supervised"),
        baseline_folder=Path("runs/out/supervised"),
        sources=Sources(labeled=source_of(digits, 3), unlabeled=source_of(digits, 8), val=CocoSource(digits.val_json)),
        scaling=scaling,
        num_processes=2,
    )


def lines_of(plan: Plan, estimate: Estimate | None = None) -> dict[str, str]:
    """Return the entries of a plan by name, each on one line."""
    entries: dict[str, str] = {}
    for line in plan.describe(estimate).splitlines()[1:]:
        name = line[2:16].strip() or list(entries)[-1]
        entries[name] = f"{entries.get(name, '')} {line[16:].strip()}".strip()
        assert len(line) <= 110
    return entries


def test_the_plan_says_what_is_trained_on_what(plan: Plan) -> None:
    lines = lines_of(plan)
    assert lines["data"].startswith("3 labeled images with ")
    assert lines["data"].endswith(" boxes of 10 classes, 8 unlabeled ones, 2 to evaluate on")
    assert lines["baseline"] == "supervised, 1000 steps (1000 on labeled, one-to-one), on the same labels"
    assert lines["training"] == (
        "semi-supervised, 1000 steps (200 on labeled, one-to-many, then 400 on labeled and unlabeled, one-to-many, "
        "then 400 on labeled and unlabeled, one-to-one)"
    )
    assert lines["batch"] == "2 labeled + 6 unlabeled images x 1 batches a step x 2 processes = 16 images a step"
    # Four times the batch: twice the learning rate, 0.999 ** 4.
    assert lines["learning rate"] == (
        "0.002 (backbone x 1, constant), momentum of the teacher 0.996006; fitted to 4 times the batch"
    )
    assert lines["pseudo-labels"].startswith("score of at least 0.3 and above mean + deviation of the image")
    assert lines["evaluation"] == (
        "every 100 steps, of student and teacher; the run ends after 5 of them without a better AP"
    )
    assert lines["written to"] == "runs/out (best network: runs/out/best, baseline: runs/out/supervised)"
    assert lines["estimate"] == "not measured"


def test_an_estimate_is_marked_as_one(plan: Plan) -> None:
    seconds = {
        "labeled, one-to-one": 0.06,
        "labeled, one-to-many": 0.06,
        "labeled and unlabeled, one-to-many": 0.3,
        "labeled and unlabeled, one-to-one": 0.3,
    }
    estimate = Estimate(step_seconds=seconds, image_seconds=None, memory_bytes=3 * 2**30, on_cuda=True)
    text = lines_of(plan, estimate)["estimate"]
    # 60 s, and 12 + 120 + 120 s.
    assert text.startswith("about 5 min (60 s + 4 min), 3,072 MB memory of the GPU; from a few trial steps (")
    assert "labeled, one-to-one: 0.06 s" in text


def test_a_plan_without_baseline_or_with_one_that_is_there(plan: Plan) -> None:
    without = lines_of(replace(plan, baseline=None, baseline_folder=None))
    assert without["baseline"] == "none, so it is not known what the unlabeled images are worth"
    warm = replace(plan.config, recipe=replace(plan.config.recipe, warm_start=True))
    reused = lines_of(replace(plan, config=warm, baseline=None))
    assert reused["baseline"] == "reused, runs/out/supervised"
    assert reused["training"].endswith(
        "it starts from the best network of the baseline, so it has had more steps in all"
    )
    assert reused["written to"] == "runs/out (best network: runs/out/best)"


def test_thresholds_of_each_class_and_mixed_images_are_told(plan: Plan) -> None:
    rules = replace(plan.config.pseudo_labels, class_thresholds="adaptive", mixing="both")
    text = lines_of(replace(plan, config=replace(plan.config, pseudo_labels=rules)))["pseudo-labels"]
    assert text.startswith("every class as often as on labeled images, score of at least 0.05")
    assert "unlabeled images mixed (both)" in text


def test_a_plan_of_a_supervised_run(plan: Plan) -> None:
    sources = plan.sources._replace(unlabeled=None, val=None)
    lines = lines_of(replace(plan, sources=sources, baseline=None, baseline_folder=None))
    assert lines["training"].startswith("supervised alone, 1000 steps")
    assert "baseline" not in lines
    assert "pseudo-labels" not in lines
    assert "--val_fraction 0.2" in lines["evaluation"]
