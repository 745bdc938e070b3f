"""What is told about a run on the page of its detector, read from what the run has written."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from semidetr_hf.data.sources import Source
from semidetr_hf.data.splits import open_whole
from semidetr_hf.hub import TrainingFacts
from semidetr_hf.training.baseline import FOLDER
from semidetr_hf.training.changed_fields import changed_fields
from semidetr_hf.training.config import DataConfig, TrainingConfig
from semidetr_hf.training.config_files import read_yaml
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.outcome import SUPERVISED, best_evaluations

DATA_FILE = "data.json"
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:[\w.-]+)?")
# A detector in the cache of the Hub's library has the id of its repository in its path.
_CACHED = re.compile(r"models--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)[/\\]snapshots[/\\]")
# Of the machine or of the upload, not of the training.
_NOT_TOLD = {
    *("output_dir", "resume", "overwrite", "trackers", "cpu", "num_workers", "estimate", "keep_checkpoints"),
    *("save_every", "push_to_hub", "hub_model_id", "hub_private_repo"),
}


def record_data(folder: Path, data: DataConfig, sources: Mapping[str, Source | None]) -> None:
    """Write down how many images a run has, and of which sets; nothing else of a run says it when they are gone.

    Args:
        folder: of the run.
        data: its settings.
        sources: `labeled`, `unlabeled`, `val` -> images, None where there are none.

    Raises:
        OSError: if the file cannot be written.
    """
    content: dict[str, Any] = {
        role: {"name": source.name, "images": len(source)} for role, source in sources.items() if source is not None
    }
    found = _HUB_ID.fullmatch(data.labeled)
    if found is not None and not Path(data.labeled).exists():
        content["labeled"]["id"] = found["id"]
    folder.mkdir(parents=True, exist_ok=True)
    with open_whole(folder / DATA_FILE) as file:
        file.write(json.dumps(content, indent=1) + "\n")


def read_facts(detector: Path) -> TrainingFacts | None:
    """Return what is known about the training of a saved detector; None if it lies in no folder of a run.

    Args:
        detector: `best`, `teacher` or `student` of a run, which may still be going on.

    Raises:
        ValueError: if a file of the run is not what a run writes; names it.
    """
    run = detector.parent
    if not all((run / name).is_file() for name in ("config.yaml", "log.jsonl")):
        return None
    config = TrainingConfig.from_dict(read_yaml(run / "config.yaml"))
    rows = JsonlLog(run / "log.jsonl").rows()
    result, data = _read_json(run / "result.json"), _read_json(run / DATA_FILE)
    scores = _scores(run, config)
    network = detector.name
    if network == "best":
        network = result.get("kept") or _best_of(scores, config)
    elif network in scores:
        scores[network] = _last_evaluation(rows, network)
    asked = run / "recipe.yaml"
    seconds = [row["seconds"] for row in JsonlLog(run / "resources.jsonl").rows() if "seconds" in row]
    labeled = data.get("labeled", {})
    return TrainingFacts(
        network=network,
        scores=scores,
        data=labeled.get("id") or labeled.get("name") or Path(config.data.labeled).name,
        data_id=labeled.get("id"),
        val=data.get("val", {}).get("name"),
        num_images={role: data[role]["images"] for role in ("labeled", "unlabeled", "val") if role in data},
        label_fraction=config.data.label_fraction,
        fold=config.data.fold,
        seed=config.run.seed,
        steps=max((row["step"] for row in rows), default=0),
        seconds=seconds[-1] if seconds else None,
        command=command(TrainingConfig.from_dict(read_yaml(asked)) if asked.is_file() else config),
        base_model=_base_model(config),
    )


def command(config: TrainingConfig) -> str:
    """Return the command that makes such a run, a flag a line; absolute paths are told by their last part alone."""
    flags = [
        f"--{field} {' '.join(shlex.quote(_told(part)) for part in (value if isinstance(value, list) else [value]))}"
        for _, field, value, _ in changed_fields(config)
        if field not in _NOT_TOLD
    ]
    return " \\\n  ".join(["semidetr train", *flags, "--output_dir runs/mine"])


def _told(value: Any) -> str:
    if not isinstance(value, str):
        return str(value)
    path = Path(value).expanduser()
    return path.name if path.is_absolute() else value


def _scores(run: Path, config: TrainingConfig) -> dict[str, dict[str, Any]]:
    """Return the best evaluation of every network, that of the baseline first."""
    folder = run / FOLDER if config.recipe.baseline in ("train", "none") else Path(config.recipe.baseline)
    found = best_evaluations(folder) if config.recipe.baseline != "none" else {}
    scores = {SUPERVISED: max(found.values(), key=lambda score: score.ap)} if found else {}
    return {name: asdict(score) for name, score in (scores | best_evaluations(run)).items()}


def _best_of(scores: Mapping[str, Mapping[str, Any]], config: TrainingConfig) -> str:
    """Return which network of the run itself is in `best/`: of equally good ones the first."""
    evaluated = [name for name in config.run.evaluated_networks if name in scores]
    return max(evaluated, key=lambda name: (scores[name]["ap"], -scores[name]["step"]), default="teacher")


def _last_evaluation(rows: list[dict[str, Any]], network: str) -> dict[str, Any]:
    row = [row for row in rows if f"{network}/ap" in row][-1]
    metrics = {name: row[f"{network}/{name}"] for name in ("ap", "ap50", "ap75")}
    return {"network": network, "step": row["step"], **metrics}


def _base_model(config: TrainingConfig) -> str | None:
    found = _CACHED.search(config.model.init_from or "")
    return None if found is None else f"{found['owner']}/{found['name']}"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not the JSON that a run writes ({error}); mend or delete the file") from error
