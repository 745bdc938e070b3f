"""Run by test_many_processes.py, alone or under `torchrun`: the same 20 steps, however the images are shared out.

A step sees 4 labeled and 4 unlabeled images, on one or two processes, at once or one after the other. What depends on
the company of an image is left out: denoising draws noise, batch norms (also of the projector) see other statistics,
and consistency queries see the empty slots beside them, of which there are none if all have three pseudo-labels.

With `--one_image` all images of a step are the same. One to many, the losses of accumulated batches are divided by the
quality of the predictions of each, which only then is the same in all; it must be above its lower bound of 1, for
which `--init_from` names a detector that knows the image.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from small_runs import ANYTHING, SIZE, configure, detector

from semidetr_hf import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.data.augment import AugmentConfig
from semidetr_hf.data.coco import CocoSource
from semidetr_hf.training.trainer import SemiDetrTrainer

NUM_STEPS = 20
IMAGES = 4
STILL = {"geometry": False, "erase_patches": (0, 0)}


def without_noise() -> SemiDetrForObjectDetection:
    return detector(num_denoising_queries=0, freeze_backbone_norm=True)


def busiest_image(source: CocoSource) -> CocoSource:
    """Several boxes, so that their quality adds up to more than 1."""
    images = Counter(box["image_id"] for box in source.coco_ground_truth()["annotations"])
    return source.subset([images.most_common(1)[0][0]])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train_json", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--one_image", action="store_true")
    parser.add_argument("--init_from")
    args = parser.parse_args()
    share = IMAGES // args.processes // args.accumulation
    config = configure(
        args.folder,
        data={"labeled_batch_size": share, "unlabeled_batch_size": share},
        # Adam makes of a gradient that is rounding alone a step of full size: small steps keep that out of the losses.
        optimizer={"learning_rate": 1e-5 if args.one_image else 3e-5},
        schedule={"num_steps": NUM_STEPS, "burn_in_steps": 4, "one_to_many_steps": 12},
        pseudo_labels=ANYTHING | {"min_box_size": None},
        run={"gradient_accumulation_steps": args.accumulation, "eval_every": 1000},
    )
    source = CocoSource(args.train_json)
    source = busiest_image(source) if args.one_image else source
    trainer = SemiDetrTrainer(
        config,
        without_noise() if args.init_from is None else SemiDetrForObjectDetection.from_pretrained(args.init_from),
        SemiDetrImageProcessor(size={"shortest_edge": SIZE, "longest_edge": SIZE}),
        labeled=source,
        unlabeled=source,
        augment=AugmentConfig(
            short_edges=(SIZE,), long_edge=SIZE, flip_probability=0, color=False, **(STILL if args.one_image else {})
        ),
    )
    if trainer.accelerator.num_processes != args.processes:
        raise SystemExit(f"{trainer.accelerator.num_processes} processes, expected {args.processes}")
    projector = trainer.accelerator.unwrap_model(trainer.objective).projector
    for norm in (projector.bn1, projector.bn2, projector.bn):
        norm.eval()
        norm.train = lambda _mode=True, norm=norm: norm
    if args.one_image:
        estrange_teacher(trainer, after=3)
    trainer.train()


def estrange_teacher(trainer: SemiDetrTrainer, *, after: int) -> None:
    """Let the teacher answer unlike the student, which equals it after the burn-in and here sees the same view.

    Otherwise boxes differ from pseudo-labels by rounding alone, and the gradient of |difference| by its sign.
    """
    train_step = trainer.train_step

    def estranged() -> dict[str, float]:
        numbers = train_step()
        if trainer.step == after:
            noise = torch.Generator().manual_seed(1)
            for parameter in trainer.teacher.detector.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.03 * parameter.abs().mean())
        return numbers

    trainer.train_step = estranged  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
