"""One self-contained HTML file about a run: results, curves, classes, pseudo-labels, pictures, data and settings.

The file holds its styles, scripts and pictures and asks for nothing from outside, so it opens without a network.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from jinja2 import Environment, PackageLoader, StrictUndefined

from semidetr_hf.data.splits import open_whole
from semidetr_hf.data.validation import check_sources
from semidetr_hf.report import charts
from semidetr_hf.report.datasets import SetNumbers, box_size_names, describe_sets
from semidetr_hf.report.headline import costs, headline, machine
from semidetr_hf.report.kept import KeptScores, score_kept
from semidetr_hf.report.progress import progress_charts, pseudo_label_charts
from semidetr_hf.report.pseudo_label_views import LabeledViews, label_views
from semidetr_hf.report.run_folder import RunFolder, changed_settings, phases_of, read_run, uses_unlabeled
from semidetr_hf.report.scoring import THRESHOLDS
from semidetr_hf.training.saved_detectors import load_detector
from semidetr_hf.training.setup import Sources, open_sources

FILE_NAME = "report.html"


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The images and boxes of the run: numbers, and warnings about them; `sets` is empty where they are gone."""

    sets: list[SetNumbers]
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class NetworkSection:
    """What needs the saved networks; each is None where it is missing, and the reason says why."""

    scores: KeptScores | None = None
    no_scores: str = ""
    views: LabeledViews | None = None
    no_views: str = ""


def write_report(
    run_folder: str | Path,
    output: str | Path | None = None,
    *,
    evaluates: bool = True,
    num_pictures: int = 6,
    progress: bool = True,
) -> Path:
    """Write the report of a run.

    What cannot be shown, such as pictures of images that are gone, is left out, and its section says why.

    Args:
        run_folder: the `output_dir` of a run, finished or not.
        output: the file; None for `report.html` in the folder of the run.
        evaluates: whether to load the saved networks: the kept one is evaluated on the validation images, the teacher
            labels a few unlabeled ones. Without it the report is made of logs and data alone.
        num_pictures: how many best, worst and unlabeled images are shown each.
        progress: whether to show progress bars.

    Returns:
        The file.

    Raises:
        FileNotFoundError: if there is no run in the folder.
        ValueError: if a file of the run is not what a run writes, `num_pictures` is negative, or there are several
            processes.
        OSError: if the report cannot be written.
    """
    if num_pictures < 0:
        raise ValueError(f"num_pictures={num_pictures}: must be 0 or more")
    run = read_run(run_folder)
    path = run.folder / FILE_NAME if output is None else Path(output)
    accelerator = Accelerator(cpu=run.config.run.cpu)
    if accelerator.num_processes > 1:
        raise ValueError(f"one process writes a report, not {accelerator.num_processes}; start it without a launcher")
    sources, trouble = _open(run)
    if evaluates:
        networks = _use_networks(run, sources, trouble, accelerator, num_pictures, progress)
    else:
        networks = NetworkSection(no_scores="left out, as asked for", no_views="left out, as asked for")
    page = _render(run, networks, _look_at_data(run, sources, trouble))
    with open_whole(path) as file:
        file.write(page)
    return path


def _render(run: RunFolder, networks: NetworkSection, data: DataSection) -> str:
    environment = Environment(
        loader=PackageLoader("semidetr_hf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = charts.shown
    has_unlabeled = uses_unlabeled(run.config)
    phases = phases_of(run.config, has_unlabeled=has_unlabeled)
    return environment.get_template("report.html").render(
        name=run.folder.resolve().name,
        headline=headline(run),
        events=run.events,
        phases=phases,
        plot=charts.FRAME,
        progress=progress_charts(run, phases),
        networks=networks,
        thresholds=THRESHOLDS,
        has_unlabeled=has_unlabeled,
        pseudo_labels=pseudo_label_charts(run, phases) if has_unlabeled else [],
        data=data,
        box_sizes=box_size_names(),
        costs=costs(run),
        machine=machine(),
        settings=changed_settings(run.config),
    )


def _open(run: RunFolder) -> tuple[Sources | None, str]:
    """Open the images of a run; where that is not possible, as when they were moved, return the reason."""
    try:
        return open_sources(run.config), ""
    except (OSError, ValueError) as error:
        return None, f"the images of the run cannot be opened: {error}"


def _look_at_data(run: RunFolder, sources: Sources | None, trouble: str) -> DataSection:
    if sources is None:
        return DataSection(sets=[], warnings=[trouble])
    try:
        warnings = check_sources(*sources, seed=run.config.run.seed)
    except (OSError, ValueError) as error:
        warnings = [str(error)]
    return DataSection(sets=describe_sets(sources), warnings=warnings)


def _use_networks(
    run: RunFolder,
    sources: Sources | None,
    trouble: str,
    accelerator: Accelerator,
    num_pictures: int,
    progress: bool,
) -> NetworkSection:
    """Evaluate the kept network, and let the teacher label a few images."""
    if sources is None:
        return NetworkSection(no_scores=trouble, no_views=trouble)
    found: dict[str, Any] = {}
    try:
        found["scores"] = _score(run, sources, accelerator, num_pictures, progress)
    except (OSError, ValueError) as error:
        found["no_scores"] = str(error)
    try:
        found["views"] = _label(run, sources, accelerator, num_pictures)
    except (OSError, ValueError) as error:
        found["no_views"] = str(error)
    return NetworkSection(**found)


def _score(
    run: RunFolder, sources: Sources, accelerator: Accelerator, num_pictures: int, progress: bool
) -> KeptScores:
    if sources.val is None:
        raise ValueError("the run has no validation images")
    if "best" not in run.networks:
        raise ValueError(f"{run.folder / 'best'}: no saved network is there")
    return score_kept(
        run.networks["best"],
        sources.val,
        sources.labeled,
        accelerator=accelerator,
        batch_size=run.config.data.labeled_batch_size,
        num_pictures=num_pictures,
        progress=progress,
    )


def _label(run: RunFolder, sources: Sources, accelerator: Accelerator, num_pictures: int) -> LabeledViews | None:
    if sources.unlabeled is None or num_pictures == 0 or not uses_unlabeled(run.config):
        return None
    name = next((name for name in ("teacher", "best") if name in run.networks), None)
    if name is None:
        raise ValueError(f"{run.folder}: no saved network is there, neither teacher/ nor best/")
    model, processor = load_detector(name, run.networks[name])
    return label_views(
        run.config, sources.unlabeled, sources.labeled, model.to(accelerator.device), processor, count=num_pictures
    )
