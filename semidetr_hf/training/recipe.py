"""A whole training that does not end below a supervised one: plan, baseline, semi-supervised run, the best of both.

What is in `output_dir/best` at the end is the best network of the three by its AP on the validation images: that of
the baseline, the student, or the teacher. `result.json` beside it says which, and all scores. `recipe.yaml` holds the
settings as they were asked for, `config.yaml` those that followed from them for the semi-supervised run.
"""

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from semidetr_hf.data.splits import open_whole
from semidetr_hf.data.validation import check_sources
from semidetr_hf.model import SemiDetrForObjectDetection
from semidetr_hf.training.accelerator import build_accelerator
from semidetr_hf.training.baseline import (
    FOLDER,
    baseline_settings,
    is_reusable,
    mark_complete,
    require_comparable,
    start_from,
    supervised_baseline,
)
from semidetr_hf.training.batch_scaling import scale_with_batch
from semidetr_hf.training.checkpoints import RunCheckpoints
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.hub_push import HubPush, require_access
from semidetr_hf.training.outcome import SUPERVISED, best_evaluations, gain_over_supervised, reasons_for_no_gain
from semidetr_hf.training.plan import Plan
from semidetr_hf.training.processes import on_main_process
from semidetr_hf.training.result import RecipeResult, TrainingResult
from semidetr_hf.training.resuming import require_unoccupied
from semidetr_hf.training.run_config import RunConfig
from semidetr_hf.training.saved_detectors import copy_detector
from semidetr_hf.training.setup import Sources, build_image_processor, build_model, open_sources
from semidetr_hf.training.trainer import SemiDetrTrainer
from semidetr_hf.training.trial import sees_unlabeled, try_steps

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
ASKED_FILE = "recipe.yaml"


def train_with_baseline(config: TrainingConfig, *, say: Callable[[str], None] = logger.info) -> RecipeResult:
    """Train as a configuration says, compare with a supervised run of the same labels and steps, and keep the best.

    Both runs can be interrupted and resumed; `resume="auto"` goes on in the one that is not complete. Without
    unlabeled images there is one run and nothing to compare it with. All processes must call it, and it must be their
    last run: the connection between them is closed.

    Args:
        config: of the run; `recipe` decides about the baseline and the rest.
        say: takes the plan and the table of the end, on the main process.

    Returns:
        Scores, what was kept, and why if there was no gain. With `stopped_by`, one of the runs is not complete.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: if settings, data or weights are wrong; names field or file.
        FileExistsError: if there is an earlier run, and nothing was said about it.
        PermissionError: if the run is to be uploaded, and this machine has no token of the Hub.
        FloatingPointError, OSError: as `SemiDetrTrainer.train`.
    """
    sources = open_sources(config)
    model = build_model(config, sources.labeled)
    accelerator = build_accelerator(config)
    main = accelerator.is_main_process
    unlabeled = sources.unlabeled if sees_unlabeled(config, sources) else None
    for warning in check_sources(sources.labeled, unlabeled, sources.val, seed=config.run.seed):
        logger.log(logging.WARNING if main else logging.DEBUG, warning)
    plan = make_plan(config, sources, model, accelerator)
    on_main_process(accelerator, lambda: _require_possible(plan))
    begins = not any((Path(run.run.output_dir) / "checkpoints").exists() for run in plan.runs)
    estimate = try_steps(plan.runs, model, sources) if config.recipe.estimate and begins else None
    if main:
        say(plan.describe(estimate))
    results = _make_runs(plan, model, accelerator)
    result = on_main_process(accelerator, lambda: _conclude(plan, results))
    if main:
        say(result.table())
    if result.stopped_by is None:
        HubPush(plan.config, accelerator).end(is_last=True)
    accelerator.end_training()
    return result


def build_trainer(
    config: TrainingConfig,
    sources: Sources | None = None,
    model: SemiDetrForObjectDetection | None = None,
    *,
    check_data: bool = True,
) -> SemiDetrTrainer:
    """Return the trainer of one run, without baseline; all that is not given is what the configuration says.

    Args:
        config: of the run.
        sources: its images.
        model: what it starts from.
        check_data: whether to look at the images first.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ConnectionError: as `open_sources`, `build_model` and the
            trainer.
    """
    sources = sources or open_sources(config)
    model = model or build_model(config, sources.labeled)
    return SemiDetrTrainer(config, model, build_image_processor(config), **sources._asdict(), check_data=check_data)


def make_plan(
    config: TrainingConfig, sources: Sources, model: SemiDetrForObjectDetection, accelerator: Accelerator
) -> Plan:
    """Decide which runs are made; all processes must call it.

    Args:
        config: as asked for.
        sources: the images.
        model: what the first of the runs starts from.
        accelerator: says how many processes there are.

    Raises:
        FileNotFoundError: if there is no complete baseline in the folder that was asked for.
        ValueError: if it cannot be compared with, or the steps that `warm_start` leaves out are too many.
    """
    asked, is_semi = config, sees_unlabeled(config, sources)
    scaling = scale_with_batch(config, num_processes=accelerator.num_processes, has_unlabeled=is_semi)
    config, choice = scaling.config, config.recipe.baseline
    baseline, folder = None, None
    if is_semi and choice != "none":
        folder = Path(config.run.output_dir) / FOLDER if choice == "train" else Path(choice)
        best = "teacher" if sources.val is None else "best"
        wanted = supervised_baseline(config, folder)
        settings = baseline_settings(wanted, model, sources, accelerator)
        if choice != "train":
            on_main_process(accelerator, lambda: require_comparable(folder, settings, best=best))
        elif not on_main_process(accelerator, lambda: is_reusable(folder, settings, best=best)):
            baseline = wanted
        if config.recipe.warm_start:
            config = start_from(config, folder / best, steps_done=config.schedule.burn_in_steps)
        # Whoever repeats the run from its config.yaml shall not train another baseline.
        config = replace(config, recipe=replace(config.recipe, baseline=str(folder)))
    return Plan(
        asked=asked,
        config=config,
        baseline=baseline,
        baseline_folder=folder,
        sources=sources,
        scaling=scaling,
        num_processes=accelerator.num_processes,
    )


def _require_possible(plan: Plan) -> None:
    """Find out before the first step whether all folders are free, and the Hub is open to this machine."""
    require_access(plan.config.run)
    for run in (config.run for config in plan.runs):
        require_unoccupied(run, RunCheckpoints(Path(run.output_dir) / "checkpoints", run.keep_checkpoints))


def _make_runs(plan: Plan, model: SemiDetrForObjectDetection, accelerator: Accelerator) -> list[TrainingResult]:
    """Train the baseline, if there is one to train, and then the run; only the last of them may be incomplete."""
    if not plan.is_semi_supervised:
        return [_train_supervised(plan, plan.config, model, accelerator)]
    results, config = [], plan.config
    if plan.baseline is not None:
        of_baseline, of_main = _resume_of(config.run, plan.baseline)
        baseline = replace(plan.baseline, run=replace(plan.baseline.run, resume=of_baseline))
        config = replace(config, run=replace(config.run, resume=of_main))
        results = [_train_supervised(plan, baseline, model, accelerator)]
        if results[0].stopped_by is not None:
            return results
    if config.recipe.warm_start:
        model = build_model(config, plan.sources.labeled)
    return [*results, _train(plan, config, model, plan.sources)]


def _resume_of(run: RunConfig, baseline: TrainingConfig) -> tuple[str | None, str | None]:
    """Return from where the baseline and the main run go on; a given checkpoint is that of one of them."""
    if run.resume in (None, "auto"):
        return run.resume, run.resume
    in_baseline = Path(str(run.resume)).resolve().is_relative_to(Path(baseline.run.output_dir).resolve())
    return (run.resume, "auto") if in_baseline else ("auto", run.resume)


def _train_supervised(
    plan: Plan, config: TrainingConfig, model: SemiDetrForObjectDetection, accelerator: Accelerator
) -> TrainingResult:
    """Train on labeled images alone, and mark the run as one that later ones can be compared with."""
    settings = baseline_settings(config, model, plan.sources, accelerator)
    result = _train(plan, config, copy.deepcopy(model), plan.sources._replace(unlabeled=None))
    if result.stopped_by is None:
        on_main_process(accelerator, lambda: mark_complete(Path(config.run.output_dir), settings))
    return result


def _train(plan: Plan, config: TrainingConfig, model: SemiDetrForObjectDetection, sources: Sources) -> TrainingResult:
    trainer = build_trainer(config, sources, model, check_data=False)
    if trainer.main:  # not before the trainer has accepted settings and checkpoint
        asked, folder = plan.asked, Path(plan.asked.run.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        replace(asked, run=replace(asked.run, resume=None, overwrite=False)).save(folder / ASKED_FILE)
    result = trainer.train(another_follows=True)
    trainer.accelerator.free_memory()
    return result


def _conclude(plan: Plan, results: list[TrainingResult]) -> RecipeResult:
    """Put the best network of all into `best/`, and write down what came of it."""
    last, output_dir, folder = results[-1], Path(plan.config.run.output_dir), plan.baseline_folder
    ended = RecipeResult(
        run_folder=plan.runs[len(results) - 1].run.output_dir,
        step=last.step,
        seconds=sum(result.seconds for result in results),
        num_unreadable=sum(result.num_unreadable for result in results),
        stopped_by=last.stopped_by,
    )
    if last.stopped_by is not None:
        return ended
    scores = {}
    if folder is not None and (found := best_evaluations(folder)):
        scores[SUPERVISED] = max(found.values(), key=lambda score: score.ap)
    scores |= best_evaluations(output_dir)
    kept = None if last.best is None else last.best.network
    if folder is not None and last.best is not None and scores[SUPERVISED].ap >= last.best.metrics.ap:
        kept = SUPERVISED
        copy_detector(folder / "best", output_dir / "best")
    gain = gain_over_supervised(scores)
    result = replace(
        ended,
        scores=scores,
        kept=kept,
        best_folder=str(output_dir / ("teacher" if kept is None else "best")),
        gain=gain,
        reasons=[] if gain is None or gain > 0 else reasons_for_no_gain(plan.config, plan.sources),
    )
    with open_whole(output_dir / RESULT_FILE) as file:
        file.write(json.dumps(result.to_dict(), indent=1) + "\n")
    return result
