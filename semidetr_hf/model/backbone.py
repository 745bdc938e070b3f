"""The backbone of a detector: built without weights, its frozen part marked.

Source: the released code of Semi-DETR freezes stem and first layer of a ResNet and all of its batch norms.
"""

from typing import Any

import torch
from timm.layers import FrozenBatchNormAct2d
from timm.utils.model import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d
from transformers import AutoBackbone

from .configuration_semidetr import SemiDetrConfig


def build_backbone(config: SemiDetrConfig) -> nn.Module:
    """Return the backbone with untrained weights, its frozen part marked; nothing is downloaded.

    Raises:
        ValueError: naming the backbone, if transformers or timm cannot build it, or it takes images of one size only.
    """
    backbone_config: Any = config.backbone_config
    name = getattr(backbone_config, "backbone", backbone_config.model_type)
    try:
        backbone = AutoBackbone.from_config(backbone_config)
    except (RuntimeError, IndexError, ValueError) as error:
        levels = getattr(backbone_config, "out_indices", None)
        raise ValueError(
            f"backbone_config: backbone {name!r} with out_indices {levels} cannot be built "
            f"({str(error).splitlines()[0]}); timm.list_models() lists the names of timm"
        ) from error
    check_any_size(backbone, name, config.num_channels)
    if config.freeze_backbone_norm:
        freeze_batch_norm_2d(backbone)
        for module in backbone.modules():
            if isinstance(module, (FrozenBatchNorm2d, FrozenBatchNormAct2d)):
                module.register_forward_hook(_return_input_dtype)
    freeze_first_stages(backbone, config.num_frozen_backbone_stages)
    return backbone


def _return_input_dtype(_norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Round the output of a frozen norm, which is float32 under autocast, and would be kept for the backward pass."""
    return output.to(inputs[0].dtype)


@torch.no_grad()
def check_any_size(backbone: Any, name: str, num_channels: int) -> None:
    """Refuse a timm backbone that takes one image size only, or only multiples of its patch.

    timm marks a network as of fixed size on suspicion; a marked one is tried on an image of 100 x 61 pixels.

    Raises:
        ValueError: naming the backbone and what to choose instead.
    """
    marks = getattr(getattr(backbone, "_backbone", None), "pretrained_cfg", None) or {}
    if not marks.get("fixed_input_size"):
        return
    training = backbone.training
    try:
        backbone.eval()(next(backbone.parameters()).new_zeros(1, num_channels, 100, 61))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"backbone_config: backbone {name!r} does not take images of any size ({reason}); "
            "choose one that does, such as resnet50 or convnext_tiny of timm, or model_type 'swin' of transformers"
        ) from error
    backbone.train(training)


def freeze_first_stages(backbone: Any, num_stages: int) -> None:
    """Stop training everything up to the end of the given number of stages.

    Raises:
        ValueError: if the backbone has fewer stages, or one whose parameters cannot be told by name.
    """
    if num_stages == 0:
        return
    stage_names: list[str] = backbone.stage_names
    if num_stages > len(stage_names):
        raise ValueError(
            f"num_frozen_backbone_stages = {num_stages}, but the backbone has only {len(stage_names)}: {stage_names}"
        )
    names = [name.removeprefix("_backbone.").removeprefix("model.") for name, _ in backbone.named_parameters()]
    end = max(_parameters_of_stage(names, stage_names, num_stages - 1), default=-1) + 1
    if end == 0 and num_stages < len(stage_names):
        # The stage ends in a layer without parameters, like the activation behind the stem of a ResNet.
        end = min(_parameters_of_stage(names, stage_names, num_stages), default=0)
    if end == 0:
        raise ValueError(
            f"num_frozen_backbone_stages = {num_stages}: no parameter of stage {stage_names[num_stages - 1]!r} "
            f"among {names[:5]}...; choose 0 or another backbone"
        )
    for parameter in list(backbone.parameters())[:end]:
        parameter.requires_grad_(False)


def _parameters_of_stage(names: list[str], stage_names: list[str], stage: int) -> list[int]:
    """Return which parameters belong to a stage, by name.

    timm writes stages as "blocks.1" or "layer1" and may register the former as "blocks_1"; "stage1" of transformers is
    registered as "encoder.stages.0".
    """
    name = stage_names[stage]
    starts = [f"{name}.", f"{name.replace('.', '_')}."]
    if name == f"stage{stage}":
        starts.append(f"encoder.stages.{stage - 1}.")
    return [i for i, parameter in enumerate(names) if parameter.startswith(tuple(starts))]
