"""Whether labels are right as often as was asked for, on scenes that neither the detector nor its thresholds saw.

A small detector learns from 400 scenes of the embedded digits. Thresholds are calibrated on some of 2,000 others, for
a wanted precision of 0.7, 0.8 and 0.9, and the right labels of the rest are counted. Several estimates of precision
are compared, and calibration on the training scenes themselves. Then images are ranked by uncertainty, and the rank is
compared with the number of corrections that their labels need.

    python benchmarks/label_calibration.py      # about ten minutes on one core, six of them training

Writes benchmarks/results/label_calibration.json. Exit code 1: a wanted precision was missed by more than 5 points.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from hardware import describe_machine
from scipy.stats import beta, spearmanr

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import write_digits_dataset
from semidetr_hf.labeling.calibration import PRIOR_DETECTIONS, calibrate
from semidetr_hf.labeling.detection import DetectedImage, DetectionRules, detect_source
from semidetr_hf.labeling.judging import Judged, judge
from semidetr_hf.labeling.labels import LabeledImage, label_by_calibration, label_by_threshold
from semidetr_hf.labeling.uncertainty import binary_entropy
from semidetr_hf.training.saved_detectors import load_detector

RESULTS = Path(__file__).parent / "results" / "label_calibration.json"
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import demo  # noqa: E402 - an example is not part of the package

NUM_TRAIN, NUM_OTHERS = 400, 2000
CALIBRATION_SCENES = (50, 100, 200, 500)
PRECISIONS = (0.7, 0.8, 0.9)
SETTINGS = ("steps", "draws", "seed")  # on which the numbers depend
NAMES = [str(digit) for digit in range(10)]
TOLERANCE = 0.05
Thresholds = Sequence[float | None]


def train(work: Path, seed: int, steps: int) -> Path:
    """Train the demo's supervised run on all training scenes; return the folder of its averaged network."""
    config = demo.configure(work / "data", work / "run", seed=seed, num_steps=steps, burn_in_steps=0)
    config = demo.supervised_baseline(config, work / "run")
    # Not even the end of the training is chosen by the other scenes.
    config = replace(
        config,
        data=replace(config.data, label_fraction=None, val=None),
        run=replace(config.run, eval_every=steps),
    )
    if demo.start(config, None).wait():
        raise RuntimeError("the training failed, see above")
    return work / "run" / "teacher"


def some_of(judged: Judged, chosen: np.ndarray) -> Judged:
    """Return the detections on the chosen images, the places of which are given."""
    rows = np.isin(judged.images, chosen)
    return replace(
        judged,
        scores=judged.scores[rows],
        labels=judged.labels[rows],
        right=judged.right[rows],
        images=judged.images[rows],
    )


def by_m_estimate(prior_detections: float) -> Callable[[Judged, float], Thresholds]:
    return lambda judged, precision: calibrate(judged, NAMES, precision, prior_detections=prior_detections).thresholds


def by_one_threshold(judged: Judged, precision: float) -> Thresholds:
    everything = calibrate(replace(judged, labels=np.zeros_like(judged.labels)), ["any"], precision)
    return everything.thresholds * len(NAMES)


def by_lower_bound(judged: Judged, precision: float) -> Thresholds:
    """Ask that the one-sided 80 % bound of Clopper and Pearson reaches the wanted precision."""
    thresholds: list[float | None] = []
    for label in range(len(NAMES)):
        rows = np.flatnonzero(judged.labels == label)
        rows = rows[np.argsort(-judged.scores[rows], kind="stable")]
        right, found = np.cumsum(judged.right[rows]), np.arange(1, len(rows) + 1)
        bounds = np.nan_to_num(beta.ppf(0.2, right, found - right + 1))  # nan where none is right
        reached = np.flatnonzero(bounds >= precision)
        thresholds.append(float(judged.scores[rows[reached[-1]]]) if len(reached) else None)
    return thresholds


METHODS: dict[str, Callable[[Judged, float], Thresholds]] = {
    f"m-estimate, m = {PRIOR_DETECTIONS:.0f} (used)": by_m_estimate(PRIOR_DETECTIONS),
    "m-estimate, m = 50": by_m_estimate(50),
    "plain share of the class": by_m_estimate(0),
    "one threshold for all classes": by_one_threshold,
    "lower confidence bound": by_lower_bound,
}


def precision_of(hidden: Judged, thresholds: Thresholds, num_objects: int) -> dict[str, float]:
    """Return what the labels with these thresholds are worth on hidden scenes."""
    smallest = np.array([np.inf if value is None else value for value in thresholds])
    kept = hidden.scores >= smallest[hidden.labels]
    per_class = [hidden.right[kept & (hidden.labels == label)] for label in range(len(NAMES))]
    return {
        "precision": float(hidden.right[kept].mean()) if kept.any() else float("nan"),
        # Of a handful of labels the share that is right is mostly luck.
        "worst_class": min((float(right.mean()) for right in per_class if len(right) >= 20), default=float("nan")),
        "recall": float(hidden.right[kept].sum() / num_objects),
        "classes_without_labels": float(np.isinf(smallest).sum()),
    }


def compare_methods(judged: Judged, num_scenes: int, draws: int, seed: int) -> list[dict[str, object]]:
    """Calibrate on random scenes and count on the others, several times."""
    rows: list[dict[str, object]] = []
    for scenes in CALIBRATION_SCENES:
        rng = np.random.default_rng(seed)
        chosen = [rng.permutation(num_scenes)[:scenes] for _ in range(draws)]
        share_hidden = 1 - scenes / num_scenes
        for method, choose in METHODS.items():
            for precision in PRECISIONS:
                results = []
                for images in chosen:
                    hidden = some_of(judged, np.setdiff1d(np.arange(num_scenes), images))
                    thresholds = choose(some_of(judged, images), precision)
                    results.append(precision_of(hidden, thresholds, round(sum(judged.num_objects) * share_hidden)))
                found = np.array([result["precision"] for result in results])
                rows.append(
                    {
                        "scenes": scenes,
                        "method": method,
                        "wanted": precision,
                        "within_5_points": float((np.abs(found - precision) <= TOLERANCE).mean()),
                        **{name: mean_of([result[name] for result in results]) for name in results[0]},
                    }
                )
    return rows


def mean_of(values: Sequence[float]) -> float | None:
    known = [value for value in values if not np.isnan(value)]
    return round(float(np.mean(known)), 4) if known else None


def corrections(images: Sequence[LabeledImage], source: CocoSource) -> np.ndarray:
    """Return, image by image, how many labels are wrong and how many objects have none."""
    order = {image.detected.image_id: place for place, image in enumerate(images)}
    labels = [replace(image.detected, found=image.labels) for image in images]
    judged = judge(labels, source, source.category_ids)
    wrong = np.bincount(judged.images[~judged.right], minlength=len(images))
    right = np.bincount(judged.images[judged.right], minlength=len(images))
    objects = np.bincount(
        [order[box["image_id"]] for box in source.coco_ground_truth()["annotations"] if box["image_id"] in order],
        minlength=len(images),
    )
    return wrong + objects - right


def compare_rankings(
    images: Sequence[DetectedImage], source: CocoSource, calibration_images: Sequence[DetectedImage]
) -> list[dict[str, object]]:
    """Rank hidden scenes by measures of uncertainty, the labels being the same for all."""
    calibration = calibrate(judge(calibration_images, source, source.category_ids), NAMES, 0.8)
    labeled = label_by_calibration(images, calibration)
    threshold = float(np.median([value for value in calibration.thresholds if value is not None]))
    plain = {image.detected.image_id: image for image in label_by_threshold(images, threshold)}
    needed = corrections(labeled, source)
    entropies = [
        binary_entropy(plain[image.detected.image_id].considered.scores.double().numpy()) for image in labeled
    ]
    measures = {
        "sum of entropies, calibrated (used with --precision)": [image.uncertainty for image in labeled],
        "sum of entropies of scores (used with --threshold)": [float(values.sum()) for values in entropies],
        "mean entropy of scores": [float(values.mean()) if len(values) else 0.0 for values in entropies],
        "largest entropy of scores": [float(values.max(initial=0)) for values in entropies],
        "number of labels": [float(len(image.labels)) for image in labeled],
    }
    first = len(labeled) // 10
    return [
        {
            "measure": name,
            "rank_correlation_with_corrections": round(float(spearmanr(values, needed).statistic), 4),
            "share_of_corrections_in_first_tenth": round(
                float(needed[np.argsort(-np.array(values), kind="stable")[:first]].sum() / needed.sum()), 4
            ),
        }
        for name, values in measures.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/label_calibration"), help="folder for data and run")
    parser.add_argument("--steps", type=int, default=900, help="optimizer steps of the training")
    parser.add_argument("--draws", type=int, default=10, help="random sets of calibration scenes of each size")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the training and the draws")
    parser.add_argument("--detector", type=Path, help="a saved detector of the same data, instead of a training")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    data = args.work / "data"
    write_digits_dataset(data, num_train=NUM_TRAIN, num_val=NUM_OTHERS, image_size=demo.IMAGE_SIZE, seed=args.seed)
    model, processor = load_detector("--detector", args.detector or train(args.work, args.seed, args.steps))
    sources = {name: CocoSource(data / f"{name}.json") for name in ("train", "val")}
    accelerator = Accelerator(cpu=True)
    found = {
        name: detect_source(
            model, processor, source, rules=DetectionRules(), batch_size=16, accelerator=accelerator, desc=name
        ).images
        for name, source in sources.items()
    }
    judged = {name: judge(found[name], sources[name], sources[name].category_ids) for name in sources}
    methods = compare_methods(judged["val"], NUM_OTHERS, args.draws, args.seed)
    on_training_set = [
        {
            "wanted": precision,
            **precision_of(
                judged["val"], METHODS[next(iter(METHODS))](judged["train"], precision), sum(judged["val"].num_objects)
            ),
        }
        for precision in PRECISIONS
    ]
    record = {
        "command": " ".join(
            ["python benchmarks/label_calibration.py", *(f"--{key} {getattr(args, key)}" for key in SETTINGS)]
        ),
        "seed": args.seed,
        "steps": args.steps,
        "scenes": {"training": NUM_TRAIN, "others": NUM_OTHERS},
        **describe_machine(),
        "calibration": methods,
        "calibration_on_the_training_scenes": on_training_set,
        "ranking": compare_rankings(found["val"][500:], sources["val"], found["val"][:500]),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    used = [row for row in methods if row["method"] == next(iter(METHODS)) and row["scenes"] >= 200]
    for name, rows in (("hidden scenes", used), ("calibrated on the training scenes", on_training_set)):
        print(f"{name}:", *(f"wanted {row['wanted']}, {row['precision']:.3f} are right" for row in rows), sep="\n  ")
    missed = [row for row in used if abs(row["precision"] - row["wanted"]) > TOLERANCE]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
