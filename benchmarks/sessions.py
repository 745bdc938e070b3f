"""From a raw folder to a report by the command `semidetr`, once for each format of data, and what it printed.

    python benchmarks/sessions.py          # about ten minutes on two cores

The data are scenes of the embedded digits made awkward (trap_scenes.py), as COCO, YOLO, Pascal VOC and a data set of
the library datasets; the unlabeled images are a bare folder, a text list, tar files and a data set. A session is
validate, train, eval, report and label; then another training on the labels that `label` wrote, as they are. All four
trainings see the same images and boxes, so their AP must be the same.

Writes benchmarks/results/sessions/: a transcript of each session, and sessions.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from hardware import describe_machine
from trap_scenes import write_trap_scenes

RESULTS = Path(__file__).parent / "results" / "sessions"
FORMATS = ("coco", "yolo", "voc", "datasets")
IMAGE_SIZE, NUM_LABELED, NUM_UNLABELED, NUM_VAL = 96, 120, 120, 60
DETECTOR = "--size nano --backbone_weights random --short_edges 96 --long_edge 96 --flip_probability 0".split()
OPTIMIZER = "--learning_rate 1.6e-3 --backbone_lr_factor 1 --max_grad_norm 0.5 --warmup_steps 5".split()
METHOD = "--one_to_many_top_k 2 --projector_width 256 --class_thresholds adaptive --mixing both".split()
BATCH = "--labeled_batch_size 8 --unlabeled_batch_size 8 --num_workers 0 --cpu True --teacher_precision same".split()


@dataclass(frozen=True, kw_only=True)
class Session:
    """Runs commands in a folder and writes down what was typed and printed."""

    folder: Path
    transcript: Path

    def run(self, *words: str) -> str:
        """Run `semidetr` with these arguments, and return what it printed.

        Raises:
            RuntimeError: if it fails; says where the transcript is.
        """
        command = [sys.executable, "-m", "semidetr_hf.cli", *words]
        started = time.monotonic()
        ended = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, encoding="utf-8", check=False)
        typed = " ".join(f"'{word}'" if " " in word or not word.isascii() else word for word in words)
        # Of a progress bar, only what it showed last.
        printed = [line.rsplit("\r", 1)[-1] for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
        seconds = f"(exit status {ended.returncode}, {time.monotonic() - started:.0f} s)"
        with self.transcript.open("a", encoding="utf-8") as file:
            file.write("\n".join([f"$ semidetr {typed}", *printed, seconds, "", ""]))
        if ended.returncode:
            raise RuntimeError(f"semidetr {typed} failed, see {self.transcript}")
        return ended.stdout


def write_raw_data(folder: Path) -> None:
    """Write labeled, unlabeled and validation images as a person would have them."""
    for split, seed, count in (("labeled", 0, NUM_LABELED), ("unlabeled", 1, NUM_UNLABELED), ("val", 2, NUM_VAL)):
        part = "val" if split == "val" else "train"
        write_trap_scenes(folder / split, split=part, num_scenes=count, image_size=IMAGE_SIZE, seed=seed)
    pictures = folder / "unlabeled" / "the images"
    files = sorted(path for path in pictures.rglob("*") if path.is_file())
    (folder / "unlabeled.txt").write_text("".join(f"{file.relative_to(folder)}\n" for file in files), encoding="utf-8")
    with tarfile.open(folder / "unlabeled.tar", "w") as archive:
        for file in files:
            archive.add(file, str(file.relative_to(pictures)))


def convert(session: Session, name: str) -> tuple[str, str, str]:
    """Return labeled, unlabeled and validation images of a format, which are made of the raw COCO files."""
    unlabeled = {"coco": "unlabeled/the images", "yolo": "unlabeled.txt", "voc": "unlabeled.tar"}
    if name == "coco":
        return "labeled/labels.json", unlabeled[name], "val/labels.json"
    paths = []
    for split in ("labeled", "val", *([] if name in unlabeled else ["unlabeled"])):
        key = "val" if split == "val" else "train"
        said = session.run("convert", f"{split}/labels.json", f"{name} {split}", "--to", name, "--split", key)
        paths.append(said.split("--labeled ", 1)[1].split("'")[1])
    return paths[0], unlabeled.get(name) or paths[2], paths[1]


def train(session: Session, run: str, *data: str, steps: int) -> None:
    """Train the small detector from scratch: burn-in, one-to-many, one-to-one."""
    lengths = {"num_steps": steps, "burn_in_steps": steps // 2, "one_to_many_steps": 3 * steps // 4}
    lengths["eval_every"] = steps // 4
    course = [word for field, value in lengths.items() for word in (f"--{field}", str(value))]
    session.run("train", *data, *DETECTOR, *OPTIMIZER, *METHOD, *BATCH, *course, "--output_dir", run)


def make_session(name: str, folder: Path, results: Path, steps: int) -> dict[str, float]:
    """Make one session, and return its scores."""
    transcript = results / f"{name}.txt"
    transcript.unlink(missing_ok=True)
    session = Session(folder=folder, transcript=transcript)
    labeled, unlabeled, val = convert(session, name)
    data = ("--labeled", labeled, "--unlabeled", unlabeled, "--val", val)
    session.run("validate", *data)
    train(session, f"runs/{name}", *data, steps=steps)
    session.run("eval", val, "--model", f"runs/{name}/best", "--json", f"{name}.json", "--cpu")
    session.run("report", f"runs/{name}")
    review = f"review {name}"
    label = ("label", unlabeled, "--model", f"runs/{name}/best", "--output", review, "--threshold", "0.1", "--cpu")
    session.run(*label, "--format", "coco", "--format", "yolo")
    written = f"{review}/yolo/data.yaml" if name == "yolo" else f"{review}/labels.json"
    train(session, f"runs/{name} again", "--labeled", written, "--val", val, steps=max(4, steps // 10))
    scores = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return {key: scores[key] for key in ("ap", "ap50", "ap75")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each training")
    parser.add_argument("--work", type=Path, default=Path("outputs/sessions"), help="new folder for data and runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    write_raw_data(args.work)
    scores = {name: make_session(name, args.work, args.results, args.steps) for name in args.formats}
    aps = [score["ap"] for score in scores.values()]
    record = {
        "command": " ".join(["python", "benchmarks/sessions.py", *sys.argv[1:]]),
        "seed": 0,
        "steps": args.steps,
        **describe_machine(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "scores": scores,
        "largest_difference_of_ap": max(aps) - min(aps),
    }
    (args.results / "sessions.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
