"""From what a user names, a detector or the folder of a training, to the page."""

from pathlib import Path

import gradio as gr
from PIL import Image

from semidetr_hf.data.images import UnreadableImageError
from semidetr_hf.data.sources import Source, open_source
from semidetr_hf.demo_page.found import open_detector
from semidetr_hf.demo_page.page import build_page
from semidetr_hf.demo_page.pseudo_labels import Comparison, compare_networks
from semidetr_hf.report.run_folder import RunFolder, read_run, uses_unlabeled
from semidetr_hf.training.setup import Sources, open_sources

NUM_EXAMPLES = 8
NUM_COMPARED = 4  # unlabeled images with pseudo-labels


def open_page(model: str | Path, examples: str | Path | None = None, *, device: str | None = None) -> gr.Blocks:
    """Return the page for a saved detector, or for a training.

    For a training it shows the kept network, has validation images as examples if no others are given, and the
    pseudo-labels of the teacher beside what the student finds, if both were saved.

    Args:
        model: folder of a saved detector of transformers, its id on the Hub, or the `output_dir` of a run.
        examples: what `open_source` takes for unlabeled images; None for none.
        device: as torch calls it; None for the accelerator of the machine, if it has one.

    Raises:
        FileNotFoundError: if there is neither a detector nor a run, or no network was saved in a run.
        ConnectionError: if an id is not to be had from the Hub.
        ValueError: if a file of them is wrong, none of the examples can be read, or there is no such device.
    """
    given = None if examples is None else read_examples(open_source(examples, labeled=False))
    if not (Path(model) / "config.yaml").is_file():
        return build_page(open_detector(model, device), given or [])
    run = read_run(model)
    name = next((name for name in ("best", "teacher", "student") if name in run.networks), None)
    if name is None:
        raise FileNotFoundError(f"{run.folder}: no network was saved in this run yet; wait for its first evaluation")
    detector = open_detector(run.networks[name], device, name=f"{run.folder.resolve().name}/{name}")
    sources, trouble = _open_images(run)
    if given is None and sources is not None and sources.val is not None:
        given = read_examples(sources.val)
    comparison, missing = _compare(run, sources, trouble, device)
    return build_page(detector, given or [], comparison=comparison, no_comparison=missing)


def read_examples(source: Source, count: int = NUM_EXAMPLES) -> list[Image.Image]:
    """Return a few pictures at equal distances in a source; unreadable ones are left out.

    Args:
        source: of images.
        count: most of them.

    Raises:
        ValueError: if none of those looked at can be read.
    """
    count = min(count, len(source))
    pictures: list[Image.Image] = []
    reasons: list[str] = []
    for number in range(count):
        try:
            pictures.append(source[number * len(source) // count].image)
        except UnreadableImageError as error:
            reasons.append(str(error))
    if not pictures:
        raise ValueError(f"{source.name}: no example can be read, the first because: {reasons[0]}")
    return pictures


def _open_images(run: RunFolder) -> tuple[Sources | None, str]:
    """Open the images of a run; where that is not possible, as when they were moved, return the reason."""
    try:
        return open_sources(run.config), ""
    except (OSError, ValueError) as error:
        return None, f"The images of the run cannot be opened: {error}"


def _compare(
    run: RunFolder, sources: Sources | None, trouble: str, device: str | None
) -> tuple[Comparison | None, str]:
    """Return teacher and student on unlabeled images, or the reason why they cannot be shown."""
    if sources is None:
        return None, trouble
    if not uses_unlabeled(run.config):
        return None, "This run learned from labeled images alone."
    if missing := [name for name in ("teacher", "student") if name not in run.networks]:
        return None, f"The run has no saved {missing[0]}; it is saved when the run ends."
    networks = [open_detector(run.networks[name], device, name=name) for name in ("teacher", "student")]
    try:
        return compare_networks(run.config, sources, networks[0], networks[1], count=NUM_COMPARED), ""
    except OSError as error:
        return None, f"The unlabeled images cannot be read: {error}"
