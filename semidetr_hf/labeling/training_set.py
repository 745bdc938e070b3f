"""Whether a detector was trained on the images that its thresholds are to be calibrated on."""

from pathlib import Path
from typing import Any

import yaml


def was_trained_on(detector_folder: Path, labeled: Path) -> bool:
    """Say whether the run that a detector was saved by took its labels from a file or folder.

    Args:
        detector_folder: of a saved detector; a run writes its `config.yaml` one folder above it.
        labeled: the labeled set in question.

    Returns:
        False also where there is no such `config.yaml`, as beside detectors from elsewhere.
    """
    config = detector_folder.absolute().parent / "config.yaml"
    if not config.is_file():
        return False
    try:
        values: Any = yaml.safe_load(config.read_text(encoding="utf-8"))
        trained_on = values["data"]["labeled"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return False  # not of a run of ours
    return isinstance(trained_on, str) and Path(trained_on).resolve() == labeled.resolve()
