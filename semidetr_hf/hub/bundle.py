"""What goes into the repository of a detector, put together in a folder.

Weights, settings, and the code that loads them; the model card; the numbers and the curves of the training; a handler
for Inference Endpoints. Checkpoints, hidden files and paths of this machine stay at home.
"""

import fnmatch
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from semidetr_hf.deployment.endpoint import write_handler
from semidetr_hf.hub.card import CARD_FILE, TrainingFacts, build_card

# What a program of transformers reads, a card that was written by hand, and what an earlier bundle holds.
DETECTOR_FILES = (
    *("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json", "*.py", CARD_FILE),
    *("requirements.txt", "log.jsonl", "eval_results.json", "training_curves.png"),
)
LOG_FILE, RESULTS_FILE, CURVES_FILE = "log.jsonl", "eval_results.json", "training_curves.png"
EXAMPLES_FOLDER = "examples"


def detector_files(folder: str | Path) -> list[Path]:
    """Return the files of a saved detector that belong into its repository, sorted by name.

    Raises:
        FileNotFoundError: if there is no config.json, no weights, or not the code that the config.json names.
        ValueError: if the config.json names no code: `trust_remote_code=True` would find nothing.
    """
    folder = Path(folder)
    files = sorted(
        path
        for path in folder.glob("*")
        if path.is_file() and any(fnmatch.fnmatch(path.name, p) for p in DETECTOR_FILES)
    )
    names = {path.name for path in files}
    if "config.json" not in names:
        raise FileNotFoundError(f"{folder}: no folder with the config.json of a saved detector; give best/ of a run")
    if not any(name.endswith(".safetensors") for name in names):
        raise FileNotFoundError(f"{folder}: has no weights (.safetensors); give the folder of a whole saved detector")
    code = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map")
    if not code:
        raise ValueError(
            f"{folder}/config.json: names no code (auto_map), so that only machines with this package could load it; "
            "save the detector again with training.saved_detectors.save_detector"
        )
    needed = {f"{reference.rpartition('--')[2].partition('.')[0]}.py" for reference in code.values()}
    if missing := sorted(needed - names):
        raise FileNotFoundError(
            f"{folder}: its config.json names the code {missing[0]}, which is not there; restore it"
        )
    return files


def write_bundle(
    detector: str | Path,
    folder: str | Path,
    repo_id: str,
    *,
    facts: TrainingFacts | None = None,
    other_runs: Sequence[TrainingFacts] = (),
    log: str | Path | None = None,
    curves: str | Path | None = None,
    examples: Sequence[str | Path] = (),
    license: str = "apache-2.0",
) -> list[Path]:
    """Put together what is uploaded; a README.md that is in the folder of the detector takes the place of the card.

    Args:
        detector: folder of a saved detector.
        folder: to be written, empty or missing.
        repo_id: of the repository, for the card.
        facts: about the training, for the card and `eval_results.json`; None if they are not known.
        other_runs: the same recipe with other labels or seeds, for the card.
        log: `log.jsonl` of the training.
        curves: picture (PNG) of the training.
        examples: pictures that visitors of the page can try the detector on; they become public with the repository.
        license: identifier of the Hub for the licence of the weights.

    Returns:
        The files, sorted by path.

    Raises:
        FileNotFoundError, ValueError: as `detector_files`; or if an example is missing, or two have one name.
        OSError: if a file cannot be written.
    """
    files, folder = detector_files(detector), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copy2(path, folder / path.name)
    write_handler(folder)
    for source, name in ((log, LOG_FILE), (curves, CURVES_FILE)):
        if source is not None:
            shutil.copy2(source, folder / name)
    if facts is not None:
        (folder / RESULTS_FILE).write_text(json.dumps(facts.results(), indent=1) + "\n", encoding="utf-8")
    names = _copy_examples(examples, folder / EXAMPLES_FOLDER)
    if not (folder / CARD_FILE).is_file():
        card = build_card(
            folder,
            repo_id,
            facts=facts,
            other_runs=other_runs,
            curves=CURVES_FILE if (folder / CURVES_FILE).is_file() else None,
            examples=[f"{EXAMPLES_FOLDER}/{name}" for name in names],
            license=license,
        )
        (folder / CARD_FILE).write_text(str(card), encoding="utf-8")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _copy_examples(examples: Sequence[str | Path], folder: Path) -> list[str]:
    names: list[str] = []
    for path in map(Path, examples):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such example picture; correct the path")
        if path.name in names:
            raise ValueError(f"{path}: two examples are called {path.name}; rename one")
        folder.mkdir(exist_ok=True)
        shutil.copy2(path, folder / path.name)
        names.append(path.name)
    return names
