"""Images per second of `semidetr predict` on a folder, with 0, 1 and 2 loader workers, beside the plain loop.

The plain loop is what one writes first: open a file, prepare it, detect, take the next. The ways alternate over the
same photographs, so that a busy machine slows all of them; the ratio is the median of the ratios of neighbours. No
pictures are drawn. All of them detect one image at a time, so that they find the same, which is checked.

    python benchmarks/batch_inference.py              # some minutes on two cores
    python benchmarks/batch_inference.py --quick      # does it run?

Writes benchmarks/results/batch_inference.json.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data_pictures import write_pictures
from hardware import describe_machine
from timing import markdown, median_ratio, median_seconds, time_in_turns

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.images import load_image
from semidetr_hf.prediction import predict_to_folder

RESULTS = Path(__file__).parent / "results" / "batch_inference.json"
PLAIN = "plain loop"
SEED = 0


def build_detector(size: str, short_edge: int) -> tuple[Any, Any]:
    """Return a detector with random weights, and its image processor."""
    torch.manual_seed(SEED)
    model = SemiDetrForObjectDetection(getattr(SemiDetrConfig, size)(num_labels=10)).eval()
    return model, SemiDetrImageProcessor(size={"shortest_edge": short_edge, "longest_edge": 2 * short_edge})


@torch.no_grad()
def plain_loop(model: Any, processor: Any, folder: Path) -> list[float]:
    """Return the scores of all detections."""
    scores: list[float] = []
    for path in sorted(folder.iterdir()):
        image = load_image(path)
        outputs = model(**processor(images=image, return_tensors="pt"))
        sizes = [(image.height, image.width)]
        [found] = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        scores += found["scores"].tolist()
    return scores


def as_predict(model: Any, processor: Any, folder: Path, output: Path, num_workers: int) -> list[float]:
    """Return the same scores, found by the function behind `semidetr predict`."""
    images = [FolderSource(folder)]
    options = {"threshold": 0.0, "draw": False, "progress": False}
    predict_to_folder(model, processor, images, output, num_workers=num_workers, **options)
    found = json.loads((output / "predictions.json").read_text(encoding="utf-8"))
    return [each["score"] for each in found]


def compare(size: str, short_edge: int, photo: tuple[int, int], count: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way to detect on `count` photographs of a size (width, height).

    Raises:
        RuntimeError: if two ways do not find the same.
    """
    detector = build_detector(size, short_edge)
    with tempfile.TemporaryDirectory() as work:
        folder = write_pictures(Path(work) / "photos", [photo] * count)
        calls: dict[str, Callable[[], list[float]]] = {PLAIN: partial(plain_loop, *detector, folder)}
        for workers in (0, 1, 2):
            calls[f"predict, {workers} workers"] = partial(
                as_predict, *detector, folder, Path(work) / f"found_{workers}", workers
            )
        expected = torch.tensor(calls[PLAIN]())
        for name, call in calls.items():
            if not torch.allclose(torch.tensor(call()), expected, atol=1e-5):
                raise RuntimeError(f"{name} finds other things than the {PLAIN}")
        seconds = time_in_turns(calls, rounds)
    where = f"{size} at short edge {short_edge}, {count} JPEG files of {photo[0]}x{photo[1]}"
    return [
        {
            "case": where,
            "way": name,
            "images_per_second": round(count / median_seconds(taken), 2),
            "speed_over_plain_loop": median_ratio(seconds[PLAIN], taken),
        }
        for name, taken in seconds.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few small pictures, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if args.quick:
        rows = compare("nano", 64, (160, 120), count=3, rounds=1)
    else:
        # Photographs of a telephone, where reading weighs as much as detecting, and small ones, where it does not.
        rows = compare("nano", 320, (2000, 1500), count=12, rounds=args.rounds)
        rows += compare("nano", 320, (640, 480), count=12, rounds=args.rounds)
    given = sys.argv[1:] if arguments is None else arguments
    record = {
        "command": shlex.join(["python", "benchmarks/batch_inference.py", *given]),
        "seed": SEED,
        **describe_machine(),
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
