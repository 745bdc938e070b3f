"""What experiment trackers hold after a run of three evaluations, the last of them after the run was taken up again.

The small detector on the embedded digits, semi-supervised from the first step, every detection a pseudo-label. Each
tracker is asked through what it stored itself, without network: the event files of tensorboard, the file of an offline
run of wandb, the databases of trackio and mlflow.

    pip install tensorboard wandb trackio mlflow
    WANDB_MODE=offline python benchmarks/trackers.py        # about two minutes on one core

Writes benchmarks/results/trackers.json.
"""

import argparse
import json
import os
import sqlite3
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from hardware import describe_machine

from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.metrics import flatten
from semidetr_hf.training.recipe import build_trainer
from semidetr_hf.training.tracking import FOLDER, PICTURE, PROJECT

RESULTS = Path(__file__).parent / "results" / "trackers.json"
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import demo  # noqa: E402 - an example is not part of the package

_BLOCK = 32 * 1024
SCALARS = ("loss", "student/ap", "teacher/ap50")


class Found(NamedTuple):
    """What a tracker holds.

    Attributes:
        runs: how many runs it knows.
        scalars: name -> (step, value) pairs.
        picture_steps: steps with a picture of pseudo-labels.
        settings: names of hyper-parameters.
    """

    runs: int
    scalars: dict[str, list[tuple[int, float]]]
    picture_steps: list[int]
    settings: set[str]


def in_tensorboard(folder: Path) -> Found:
    """Read the event files; each session writes one, and all of them are the same run."""
    import yaml
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / PROJECT), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    pictures = [event.step for event in events.Images(PICTURE)]
    hyper_parameters = list((folder / PROJECT).glob("*/hparams.yml"))
    settings = set(yaml.safe_load(hyper_parameters[0].read_text(encoding="utf-8")))
    return Found(len(hyper_parameters), scalars, pictures, settings)


def in_wandb(folder: Path) -> Found:
    """Read the files of the offline sessions; those of one run have its id in their name."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.parent.stat().st_ctime)
    scalars: dict[str, list[tuple[int, float]]] = {}
    pictures, settings = [], set()
    for file in files:
        for data in _log_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            settings |= {item.key for item in record.run.config.update} | {i.key for i in record.config.update}
            row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            if any(name.split("/")[0] == PICTURE for name in row):
                pictures.append(row["_step"])
            for name, value in row.items():
                if isinstance(value, (int, float)) and not name.startswith("_"):
                    scalars.setdefault(name, []).append((row["_step"], value))
    return Found(len({file.name for file in files}), scalars, pictures, settings - {"_wandb"})


def _log_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, which wandb's files have behind seven bytes of their own.

    Source: LevelDB, log_format.md: blocks of 32 KiB; a record is a checksum, its length, its kind (1 whole, 2 first, 3
    middle, 4 last part) and its content.
    """
    place, parts = 7, b""
    while place + 7 <= len(data):
        if (rest := _BLOCK - place % _BLOCK) < 7:
            place += rest
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def in_trackio(folder: Path) -> Found:
    """Read the database below TRACKIO_DIR."""
    database = sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / f"{PROJECT}.db")
    rows = [(step, json.loads(row)) for step, row in database.execute("SELECT step, metrics FROM metrics ORDER BY id")]
    runs = {name for (name,) in database.execute("SELECT DISTINCT run_name FROM metrics")}
    settings = {key for (text,) in database.execute("SELECT config FROM configs") for key in json.loads(text)}
    scalars: dict[str, list[tuple[int, float]]] = {}
    for step, row in rows:
        for name, value in row.items():
            if isinstance(value, (int, float)):
                scalars.setdefault(name, []).append((step, value))
    pictures = [step for step, row in rows if PICTURE in row]
    return Found(len(runs), scalars, pictures, {key for key in settings if not key.startswith("_")})


def in_mlflow(folder: Path) -> Found:
    """Ask mlflow's client, and look at the pictures on disk."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    run = runs[0]
    scalars = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    pictures = sorted(int(file.name.split("+")[2]) for file in folder.glob(f"mlflow/**/{PICTURE}+step+*.png"))
    return Found(len(runs), scalars, pictures, set(run.data.params))


READERS: dict[str, Callable[[Path], Found]] = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "trackio": in_trackio,
    "mlflow": in_mlflow,
}


def configure(data: Path, folder: Path, tracker: str, num_steps: int) -> TrainingConfig:
    """Return a run that is evaluated every second step."""
    config = demo.configure(data, folder, seed=0, num_steps=num_steps, burn_in_steps=0)
    return replace(
        config,
        data=replace(config.data, labeled_batch_size=2, unlabeled_batch_size=2, num_workers=0),
        optimizer=replace(config.optimizer, lr_schedule="constant", warmup_steps=0),
        schedule=replace(config.schedule, one_to_many_steps=2),
        pseudo_labels=replace(config.pseudo_labels, score_threshold=0.0, mean_std_filter=False, max_detections=3),
        run=replace(
            config.run, log_every=1, eval_every=2, trackers=[tracker], resume="auto", overwrite=False, cpu=True
        ),
    )


def track(tracker: str, work: Path) -> Found:
    """Run four steps, go on to the sixth, and return what the tracker holds."""
    data, folder = work / "data", work / tracker
    if not data.exists():
        write_digits_dataset(data, num_train=40, num_val=2, image_size=demo.IMAGE_SIZE, seed=0)
    for num_steps in (4, 6):
        build_trainer(configure(data, folder, tracker, num_steps)).train()
    return READERS[tracker](folder / FOLDER)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trackers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    record: dict[str, Any] = {"command": "WANDB_MODE=offline python benchmarks/trackers.py", **describe_machine()}
    with tempfile.TemporaryDirectory() as work:
        os.environ.setdefault("TRACKIO_DIR", str(Path(work) / "trackio_store"))
        for tracker in args.trackers:
            found = track(tracker, Path(work))
            record[tracker] = {
                "version": version("mlflow-skinny" if tracker == "mlflow" else tracker),
                "runs": found.runs,
                "names_of_scalars": len(found.scalars),
                "scalars": {name: found.scalars.get(name) for name in SCALARS},
                "steps_with_a_picture": found.picture_steps,
                "settings": len(found.settings),
                "settings_of_the_configuration": len(flatten(configure(Path("x"), Path("y"), tracker, 6).to_dict())),
            }
            print(f"{tracker}: {json.dumps(record[tracker])}", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
