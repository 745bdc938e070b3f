"""Bad inputs: checkpoints of a run from which another session wants to go on."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState
from bad_inputs.case import FIELD_NAMED, FILE_NAMED, Case
from bad_inputs.folders import IMAGES, coco, train, train_with
from example_modules import load_example

Spoil = Callable[[Path], Any]
AUTO = "--resume auto"
NEWEST = "{folder}/out/checkpoints/step_00000002"


@functools.cache
def _run_of_two_steps() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with the data and, in `out`, the result of a run with a checkpoint after every step."""
    folder = tempfile.TemporaryDirectory(prefix="run-")  # removed when the process ends
    coco(Path(folder.name))
    flags = "--num_steps 2 --save_every 1 --one_to_many_steps 1".split()
    status = load_example("train_ssod").main(train(Path(folder.name), *flags))
    if status != 0:
        raise RuntimeError(f"the run to be resumed ended with status {status}")
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return folder


def resuming(flags: str, spoil: Spoil = lambda folder: None) -> Callable[[Path], list[str]]:
    """Return what makes a session that goes on for a third step, after `spoil` was called with the checkpoint."""

    def make(folder: Path) -> list[str]:
        shutil.copytree(_run_of_two_steps().name, folder, dirs_exist_ok=True)
        spoil(Path(NEWEST.format(folder=folder)))
        return train(folder, *f"--num_steps 3 --one_to_many_steps 1 {flags}".format(folder=folder).split())

    return make


def refused(title: str, flags: str, says: str, spoil: Spoil = lambda folder: None, happens: str = FILE_NAMED) -> Case:
    return Case(title=title, make=resuming(flags, spoil), says=says, happens=happens)


def cut(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


def rubbish(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes(b"?" * (folder / name).stat().st_size)


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def of_two_processes(folder: Path) -> None:
    state = json.loads((folder / "run.json").read_text())
    state["processes"] *= 2
    (folder / "run.json").write_text(json.dumps(state))


def without_an_image(folder: Path) -> None:
    coco(folder.parents[2], images=IMAGES[:2], annotations=None)
    data = json.loads((folder.parents[2] / "labels.json").read_text())
    boxes = [{"id": i, "image_id": i, "category_id": 3, "bbox": [10, 10, 30, 30]} for i in (1, 2)]
    (folder.parents[2] / "labels.json").write_text(json.dumps(data | {"annotations": boxes}))


def move_out(folder: Path) -> None:
    """The checkpoint lies elsewhere; the output folder holds another run."""
    shutil.copytree(folder, folder.parents[2] / "elsewhere")


CASES = [
    refused(
        "the output folder holds an earlier run",
        "",
        "out: holds a run of 2 steps .*--resume auto .*--overwrite .*--output_dir",
        happens="ends before anything is computed; names the three ways out",
    ),
    refused("a checkpoint that is not there", "--resume {folder}/out/step_9", r"step_9: no checkpoint .*run\.json"),
    refused("the folder of a detector as checkpoint", "--resume {folder}/out/student", r"student: .*run\.json is mis"),
    refused("run.json is no json", f"--resume {NEWEST}", r"run\.json: not the run\.json", rubbish("run.json")),
    refused("run.json lacks a part", f"--resume {NEWEST}", "'files'", lambda f: (f / "run.json").write_text("{}")),
    refused("weights that were cut off", f"--resume {NEWEST}", r"100 of \d+ bytes .*torn", cut("model.safetensors")),
    refused("no optimizer in a checkpoint", f"--resume {NEWEST}", r"no of \d+ bytes .*torn", remove("optimizer.bin")),
    refused("an optimizer of rubbish", AUTO, "step_00000002: .*cannot be read .*deleted", rubbish("optimizer.bin")),
    refused("a teacher of rubbish", AUTO, "step_00000002: .*cannot be read", rubbish("teacher.safetensors")),
    refused("weights of rubbish", AUTO, "step_00000002: .*cannot be read", rubbish("model.safetensors")),
    refused(
        "random generators of rubbish",
        AUTO,
        "step_00000002: the random generators were not restored",
        rubbish("random_states_0.pkl"),
    ),
    refused("a checkpoint of two processes", AUTO, "written by 2 processes, .*has 1; start 2", of_two_processes),
    refused(
        "another learning rate than before",
        f"{AUTO} --learning_rate 0.5",
        r"another run: optimizer\.learning_rate was 0\.0001 and is 0\.5",
        happens=FIELD_NAMED,
    ),
    refused("another seed than before", f"{AUTO} --seed 5", r"run\.seed was 0 and is 5", happens=FIELD_NAMED),
    refused(
        "another size of the detector than before",
        f"{AUTO} --size small",
        "size was 'nano' and is",
        happens=FIELD_NAMED,
    ),
    refused("a labeled image was removed", AUTO, "the labeled images was .*3.* and is", without_an_image),
    refused(
        "fewer steps than were made",
        f"{AUTO} --num_steps 1",
        "has made 2 steps, more than num_steps=1; raise it",
        happens=FIELD_NAMED,
    ),
    refused(
        "a checkpoint of another folder, while the output folder holds a run",
        "--resume {folder}/elsewhere",
        "out: holds another run than the one of resume=.*elsewhere'; give another --output_dir",
        move_out,
    ),
    *(
        Case(title=title, make=train_with(flags), says=says, happens=FIELD_NAMED)
        for title, flags, says in (
            (
                "going on and replacing at once",
                "--resume auto --overwrite",
                "resume='auto' contradicts overwrite",
            ),
            ("no checkpoint to be kept", "--keep_checkpoints 0", "keep_checkpoints=0: must be at least 1"),
            ("a checkpoint every 0 steps", "--save_every 0", "save_every=0: must be at least 1, or none"),
            ("fewer than no skipped steps", "--max_skipped_steps -1", "max_skipped_steps=-1: must be at least 0"),
            ("a collapse above the best AP", "--collapse_ap 1.5", "collapse_ap=1.5: must be from 0, below 1"),
        )
    ),
]
