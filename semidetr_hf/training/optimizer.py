"""AdamW with a slower backbone, and the course of the learning rate.

Source: Semi-DETR (arXiv 2307.08095), implementation details; the released code gives the backbone a tenth of the
learning rate, applies weight decay to every parameter (norms, biases and embeddings included) and uses no warm-up.
"""

import math
from collections.abc import Sequence
from functools import partial

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from semidetr_hf.training.config import OptimizerConfig

# torch.optim.AdamW has one fused kernel for these kinds of device in every supported version of torch.
_FUSED_DEVICES = {"cpu", "cuda", "xpu"}


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """Return AdamW over the trainable parameters in two groups: the backbone first, then everything else.

    A parameter belongs to the backbone when one part of its dotted name is `backbone`.

    Args:
        model: on the device on which it will be trained.
        config: learning rate, backbone factor and weight decay.

    Returns:
        The optimizer. A group may be empty (a wholly frozen backbone), so that the two groups are always the same two.

    Raises:
        ValueError: if nothing is trainable.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError(
            f"{type(model).__name__} has no parameter with requires_grad=True, so there is nothing to train"
        )
    backbone = [parameter for name, parameter in trainable.items() if "backbone" in name.split(".")]
    rest = [parameter for name, parameter in trainable.items() if "backbone" not in name.split(".")]
    groups = [
        {"params": backbone, "lr": config.learning_rate * config.backbone_lr_factor},
        {"params": rest, "lr": config.learning_rate},
    ]
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in trainable.values())
    return AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def build_scheduler(optimizer: Optimizer, config: OptimizerConfig, num_steps: int) -> LambdaLR:
    """Return the scheduler of all groups; call its `step` once after every optimizer step.

    Raises:
        ValueError: if `num_steps` is below 1 or not above the warm-up.
    """
    if num_steps < 1 or config.warmup_steps >= num_steps:
        raise ValueError(f"num_steps={num_steps}: must be at least 1 and above warmup_steps={config.warmup_steps}")
    return LambdaLR(
        optimizer,
        partial(
            learning_rate_factor,
            schedule=config.lr_schedule,
            num_steps=num_steps,
            warmup_steps=config.warmup_steps,
            drop_steps=tuple(config.lr_drop_steps),
            drop_factor=config.lr_drop_factor,
        ),
    )


def learning_rate_factor(
    step: int,
    *,
    schedule: str,
    num_steps: int,
    warmup_steps: int = 0,
    drop_steps: Sequence[int] = (),
    drop_factor: float = 0.1,
) -> float:
    """Return what the learning rate is multiplied with at a step.

    Args:
        step: optimizer steps already done, from 0.
        schedule: `constant`, `step` (times `drop_factor` from each of `drop_steps` on) or `cosine` (from 1 after the
            warm-up to 0 at `num_steps`).
        num_steps: optimizer steps of the whole run.
        warmup_steps: first steps, over which the factor rises linearly; step 0 already has 1 / `warmup_steps`.
        drop_steps: for `step`.
        drop_factor: for `step`.

    Raises:
        ValueError: if `schedule` is none of the three.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "constant":
        return warmup
    if schedule == "step":
        return warmup * drop_factor ** sum(step >= drop for drop in drop_steps)
    if schedule == "cosine":
        progress = min(1.0, max(0.0, (step - warmup_steps) / (num_steps - warmup_steps)))
        return warmup * (1 + math.cos(math.pi * progress)) / 2
    raise ValueError(f"schedule={schedule!r}: must be constant, step or cosine")
