"""Run by test_many_processes.py under `torchrun`: one of two processes meets what the other does not.

With `nan` the second process gets an image of NaN in its third step; with `seed` it was started with another seed.
"""

import json
import os
import sys
from pathlib import Path

import torch
from small_runs import ANYTHING, build, configure

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.training.processes import fingerprint


def main(train_json: Path, folder: Path, what: str, rank: int) -> None:
    seed = 1 if what == "seed" and rank == 1 else 0
    config = configure(
        folder, pseudo_labels=ANYTHING, schedule={"num_steps": 6}, run={"seed": seed, "eval_every": 1000}
    )
    source = CocoSource(train_json)
    trainer = build(config, labeled=source, unlabeled=source)
    next_batch, images = trainer._next_batch, []

    def watch():
        batch = next_batch()
        images.append(batch.unlabeled.image_ids)
        if rank == 1 and trainer.step == 2:
            batch.unlabeled.strong.pixel_values[1] = torch.nan
        return batch

    trainer._next_batch = watch  # type: ignore[method-assign]
    weights = []
    make_step = trainer.make_step

    def watched_step(step, batches):
        result = make_step(step, batches)
        weights.append((fingerprint(trainer.student), fingerprint(trainer.teacher.detector), result.trouble))
        return result

    trainer.make_step = watched_step  # type: ignore[assignment]
    trainer.train()
    (folder / f"process{rank}.json").write_text(json.dumps({"weights": weights, "images": images}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(os.environ["RANK"]))
