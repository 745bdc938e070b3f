"""What came of a run and its supervised baseline, read from their logs: scores, gain, and why there is none."""

from pathlib import Path
from typing import Any

from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.result import NetworkScore
from semidetr_hf.training.setup import Sources

SUPERVISED, STUDENT, TEACHER = "supervised", "student", "teacher"
# Below this AP a teacher mostly teaches its mistakes.
WEAK_TEACHER_AP = 0.1
# Fewer pseudo-labels per image than this share of the boxes on a labeled one are few.
FEW_PSEUDO_LABELS = 0.25
# With fewer validation images a difference of a point or two says nothing.
FEW_VAL_IMAGES = 200


def best_evaluations(run_folder: Path) -> dict[str, NetworkScore]:
    """Return the best evaluation of student and teacher of a run, as far as they were evaluated.

    Raises:
        ValueError: if a line of its log is not JSON; names file and line.
    """
    best: dict[str, NetworkScore] = {}
    for row in JsonlLog(run_folder / "log.jsonl").rows():
        for network in (STUDENT, TEACHER):
            ap = row.get(f"{network}/ap")
            if ap is not None and (network not in best or ap > best[network].ap):
                ap50, ap75 = row[f"{network}/ap50"], row[f"{network}/ap75"]
                best[network] = NetworkScore(network=network, step=row["step"], ap=ap, ap50=ap50, ap75=ap75)
    return best


def gain_over_supervised(scores: dict[str, NetworkScore]) -> float | None:
    """Return by how much the better of student and teacher is above `supervised`; None without the two."""
    semi = [score.ap for name, score in scores.items() if name != SUPERVISED]
    return max(semi) - scores[SUPERVISED].ap if semi and SUPERVISED in scores else None


def reasons_for_no_gain(config: TrainingConfig, sources: Sources) -> list[str]:
    """Return what in the log and the data of a semi-supervised run may be why it did not help, one line each.

    Args:
        config: of the run, which is complete.
        sources: its images.

    Raises:
        ValueError: if a line of its log is not JSON; names file and line.
    """
    rows = JsonlLog(Path(config.run.output_dir) / "log.jsonl").rows()
    found = [row["event"] for row in rows if "event" in row]
    found += _about_pseudo_labels(rows, sources)
    found += _about_evaluations(rows, config.schedule.num_steps)
    if sources.unlabeled is not None and len(sources.unlabeled) < 2 * len(sources.labeled):
        found.append(
            f"there are only {len(sources.unlabeled)} unlabeled images for {len(sources.labeled)} labeled ones"
        )
    if sources.val is not None and len(sources.val) < FEW_VAL_IMAGES:
        found.append(f"on {len(sources.val)} validation images a small difference is chance: evaluate on more")
    found.append("the unlabeled images show other things than the labeled ones: look at the pseudo-labels")
    return found


def _about_pseudo_labels(rows: list[dict[str, Any]], sources: Sources) -> list[str]:
    counts = [row["pseudo_labels"] for row in rows if row.get("pseudo_labels") is not None]
    if not counts:
        return ["no step saw an unlabeled image"]
    late = counts[-max(1, len(counts) // 4) :]
    found, expected = sum(late) / len(late), sources.labeled.num_boxes / len(sources.labeled)
    if found >= FEW_PSEUDO_LABELS * expected:
        return []
    return [
        f"few pseudo-labels: {found:.2f} per image in the end, where a labeled one has {expected:.2f} boxes; lower "
        "score_threshold"
    ]


def _about_evaluations(rows: list[dict[str, Any]], num_steps: int) -> list[str]:
    first = next((row["step"] for row in rows if row.get("pseudo_labels") is not None), 0)
    evaluations = [(row["step"], row["teacher/ap"]) for row in rows if row.get("teacher/ap") is not None]
    begins = next((ap for step, ap in evaluations if step >= first), None)
    found = []
    if begins is not None and begins < WEAK_TEACHER_AP:
        found.append(
            f"the teacher was weak when it began to label images, AP {begins:.3f}: lengthen burn_in_steps, or start "
            "from a trained detector (warm_start, init_from)"
        )
    if evaluations and evaluations[-1][0] == num_steps and evaluations[-1][1] == max(ap for _, ap in evaluations):
        found.append("the teacher was still becoming better at the end: raise num_steps")
    return found
