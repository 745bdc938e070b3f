"""Time and peak memory of every stage until the first batch of a run on many unlabeled images.

Part of `data.py`, which starts it as a fresh process; alone it prints the stages of one source as json:

    python benchmarks/data_start.py LABELED.json UNLABELED [FOLDER_OF_THE_UNLABELED_IMAGES]
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pictures import write_pictures
from model_speed import own_peak_memory_mb

from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.loading import PassSampler, UnlabeledDataset, view_loader
from semidetr_hf.data.sources import open_source
from semidetr_hf.data.validation import check_sources
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.resuming import settings_of

FILES_PER_FOLDER = 1000
LINKS_PER_FILE = 10_000  # ext4 allows 65,000
NUM_PICTURES = 4


def write_labeled(folder: Path) -> Path:
    """Write a few small pictures with a COCO json that gives each of them a box."""
    write_pictures(folder, [(320, 240)] * NUM_PICTURES)
    images = [{"id": i, "file_name": f"{i:05}.jpg", "width": 320, "height": 240} for i in range(NUM_PICTURES)]
    boxes = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [9, 9, 50, 50]} for i in range(NUM_PICTURES)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "labeled.json").write_text(json.dumps(content))
    return folder / "labeled.json"


def write_many(folder: Path, pictures: Path, count: int) -> tuple[Path, Path]:
    """Link small pictures under `count` names in sub-folders; return that folder, and a json without annotations."""
    files = sorted(pictures.glob("*.jpg"))
    names, many, copies = [], folder / "many", folder / "copies"
    copies.mkdir()
    for number in range(count):
        name = f"{number // FILES_PER_FOLDER:04}/{number:012}.jpg"
        if number % FILES_PER_FOLDER == 0:
            (many / name).parent.mkdir(parents=True)
        if number % LINKS_PER_FILE == 0:
            linked = copies / f"{number}.jpg"
            linked.write_bytes(files[number // LINKS_PER_FILE % len(files)].read_bytes())
        os.link(linked, many / name)
        names.append(name)
    entries = [
        {"id": i, "file_name": name, "width": 320, "height": 240, "license": 1, "date_captured": "2013-11-14 11:18:45"}
        for i, name in enumerate(names)
    ]
    (folder / "many.json").write_text(json.dumps({"images": entries}))
    return many, folder / "many.json"


def measure_start(labeled: Path, unlabeled: str, image_folder: str | None) -> list[dict[str, Any]]:
    """Go through the stages in this process and return a row for each, with the peak memory so far."""
    rows: list[dict[str, Any]] = [{"stage": "imports", "seconds": None, "peak_memory_mb": round(own_peak_memory_mb())}]

    def stage(name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        seconds = round(time.perf_counter() - start, 2)
        rows.append({"stage": name, "seconds": seconds, "peak_memory_mb": round(own_peak_memory_mb())})
        return result

    config = TrainingConfig.from_dict({"data": {"labeled": str(labeled)}, "run": {"output_dir": "unused"}})
    with_boxes = open_source(labeled)
    source = stage("listing", lambda: open_source(unlabeled, image_folder, labeled=False))
    stage("checks", lambda: check_sources(with_boxes, source, with_boxes))
    stage("settings", lambda: settings_of(config, None, labeled=with_boxes, unlabeled=source, val=with_boxes))
    gray = (0.5, 0.5, 0.5)
    dataset = stage("data set", lambda: UnlabeledDataset(source, AugmentConfig(), gray, gray))
    order = PassSampler(len(source), 2 * len(source), seed=0)
    stage("order of the images", lambda: next(iter(order)))
    loader = view_loader(dataset, order, batch_size=4, num_workers=2)
    stage("first batch", lambda: next(iter(loader)))
    return rows


def compare_starts(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return the stages of a folder and of a json of so many images, each from a fresh process."""
    labeled = write_labeled(folder / "labeled")
    many, listed = write_many(folder, labeled.parent, count)
    rows = []
    for source, arguments in (("folder", [many]), ("json", [listed, many])):
        command = [sys.executable, __file__, str(labeled), *map(str, arguments)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        stages = json.loads(output.splitlines()[-1])
        total = round(sum(row["seconds"] or 0 for row in stages), 2)
        stages.append({"stage": "all", "seconds": total, "peak_memory_mb": stages[-1]["peak_memory_mb"]})
        rows += [{"source": source, "images": count, **row} for row in stages]
    return rows


if __name__ == "__main__":
    print(json.dumps(measure_start(Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)))
