"""Experiment trackers through Accelerate: one run in each of them per run of ours, also when that was interrupted.

What they write to disk is below `trackers/` of the output folder, unless they have been told another place by
themselves (`MLFLOW_TRACKING_URI`); trackio keeps its own. Only the main process talks to them.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers
from PIL import Image

from semidetr_hf.data.splits import open_whole

PROJECT = "semidetr"
FOLDER = "trackers"  # in the output folder
PICTURE = "pseudo_label_views"  # name of the pictures; `pseudo_labels` is a number
# Tracker -> what pip installs.
PACKAGES = {
    name: name for name in ("aim", "clearml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
}
PACKAGES["comet_ml"] = "comet-ml"
# Read before mlflow puts the place of the first run of this process there.
_MLFLOW_STORE = os.environ.get("MLFLOW_TRACKING_URI")


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed.

    Raises:
        ValueError: names the first of them, and the known ones or the command that installs it.
    """
    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in PACKAGES:
            raise ValueError(
                f"trackers={list(names)}: {name!r} is unknown; choose among {', '.join(sorted(PACKAGES))}"
            )
        if name not in installed:
            raise ValueError(f"trackers={list(names)}: {name} is not installed; pip install {PACKAGES[name]}")


def start_trackers(accelerator: Accelerator, folder: Path, settings: Mapping[str, Any], step: int) -> None:
    """Begin a run in every tracker, or go on with the one that an earlier session began.

    Args:
        accelerator: knows the trackers; not all of them need to have been there in the earlier session.
        folder: output folder of the run; the runs of the trackers are noted down in it.
        settings: flat, plain values; told to a tracker once, when its run begins.
        step: number of steps made; from 1 on the run goes on.

    Raises:
        OSError: if nothing can be written to the folder.
    """
    if not accelerator.log_with:
        return
    place = folder / FOLDER
    noted = place / "runs.json"
    known = json.loads(noted.read_text(encoding="utf-8")) if step > 0 and noted.is_file() else {}
    begun = "-".join([*folder.absolute().parts[-2:], datetime.now().strftime("%Y%m%d-%H%M%S")])
    if accelerator.is_main_process:
        place.mkdir(parents=True, exist_ok=True)  # instead of one that is not there wandb takes another, silently
    options = {
        str(name): _options(str(name), place.absolute(), begun, known.get(str(name)), step, settings)
        for name in accelerator.log_with
    }
    accelerator.init_trackers(PROJECT, init_kwargs=options)
    if not accelerator.is_main_process:
        return
    for tracker in accelerator.trackers:
        if tracker.name not in known:
            tracker.store_init_configuration(dict(settings))
            known[tracker.name] = _run_id(tracker, begun)
    with open_whole(noted) as file:
        json.dump(known, file, indent=2)


def _options(
    name: str, place: Path, begun: str, known: str | None, step: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what Accelerate hands to a tracker; `known` is its run of an earlier session."""
    match name:
        case "tensorboard":
            # Of steps that are made again it shows the new numbers only.
            return {} if known is None else {"purge_step": step + 1}
        case "wandb":
            return {"name": begun, "dir": str(place)} | ({} if known is None else {"id": known, "resume": "allow"})
        case "trackio":
            # A session that goes on replaces the settings of the one before, by none if it has none.
            return {"name": known or begun, "resume": "allow", "config": dict(settings)}
        case "mlflow":
            options: dict[str, Any] = {"run_name": begun, "run_id": known}
            if _MLFLOW_STORE is None:
                import mlflow

                mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
                options["logging_dir"] = (place / "mlflow").as_uri()
            return options
    return {}


def _run_id(tracker: GeneralTracker, begun: str) -> str:
    """Return by what a tracker finds the run again."""
    match tracker.name:
        case "wandb":
            return tracker.tracker.id
        case "mlflow":
            return tracker.tracker.info.run_id
    return begun


def show_picture(accelerator: Accelerator, picture: Image.Image, step: int) -> None:
    """Hand an RGB picture to all trackers that take some, see `TAKE_PICTURES`; on the main process."""
    for tracker in accelerator.trackers:
        if tracker.name in TAKE_PICTURES:
            TAKE_PICTURES[tracker.name](tracker, picture, step)


def _to_tensorboard(tracker: Any, picture: Image.Image, step: int) -> None:
    tracker.log_images({PICTURE: np.asarray(picture)[None]}, step=step, dataformats="NHWC")


def _to_wandb(tracker: Any, picture: Image.Image, step: int) -> None:
    tracker.log_images({PICTURE: [picture]}, step=step)


def _to_trackio(tracker: Any, picture: Image.Image, step: int) -> None:
    import trackio

    tracker.log({PICTURE: trackio.Image(picture)}, step=step)


def _to_mlflow(_tracker: Any, picture: Image.Image, step: int) -> None:
    import mlflow

    mlflow.log_image(picture, key=PICTURE, step=step, synchronous=True)


TAKE_PICTURES: dict[str, Callable[[Any, Image.Image, int], None]] = {
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
    "trackio": _to_trackio,
    "mlflow": _to_mlflow,
}
