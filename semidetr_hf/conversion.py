"""Published checkpoints of official DINO -> parameter names of this package: one table, one function.

Source: the state dict of official DINO (4-scale, ResNet-50), 626 entries.
"""

import re

import torch
from torch import Tensor

# Pattern in a published checkpoint -> name here. The decoder's self-attention is stacked there and is split below.
_DINO_NAMES = (
    (r"backbone\.0\.body\.(.+)", r"model.backbone._backbone.\1"),
    (r"input_proj\.(.+)", r"model.input_proj.\1"),
    (r"label_enc\.weight", r"label_embedding.weight"),
    (r"class_embed\.0\.(.+)", r"class_head.\1"),
    (r"bbox_embed\.0\.(.+)", r"model.decoder.box_head.\1"),
    (r"transformer\.level_embed", r"model.level_embedding.weight"),
    (r"transformer\.tgt_embed\.weight", r"model.query_content.weight"),
    (r"transformer\.enc_output\.(.+)", r"model.proposal_proj.\1"),
    (r"transformer\.enc_output_norm\.(.+)", r"model.proposal_norm.\1"),
    (r"transformer\.enc_out_class_embed\.(.+)", r"model.proposal_class_head.\1"),
    (r"transformer\.enc_out_bbox_embed\.(.+)", r"model.proposal_box_head.\1"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm1\.(.+)", r"model.encoder.layers.\1.self_attn_layer_norm.\2"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm2\.(.+)", r"model.encoder.layers.\1.final_layer_norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm1\.(.+)", r"model.decoder.layers.\1.cross_attn_layer_norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm2\.(.+)", r"model.decoder.layers.\1.self_attn_layer_norm.\2"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm3\.(.+)", r"model.decoder.layers.\1.final_layer_norm.\2"),
    (r"transformer\.decoder\.norm\.(.+)", r"model.decoder.layer_norm.\1"),
    (r"transformer\.decoder\.ref_point_head\.(.+)", r"model.decoder.position_head.\1"),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.linear([12])\.(.+)", r"model.\1.layers.\2.mlp.fc\3.\4"),
    (
        r"transformer\.decoder\.layers\.(\d+)\.self_attn\.out_proj\.(.+)",
        r"model.decoder.layers.\1.self_attn.o_proj.\2",
    ),
    (r"transformer\.(encoder|decoder)\.layers\.(\d+)\.(self_attn|cross_attn)\.(.+)", r"model.\1.layers.\2.\3.\4"),
)
# Heads that official DINO stores once per layer and again inside the decoder; here there is one of each.
_DINO_COPIES = re.compile(r"(?:transformer\.decoder\.)?(class_embed|bbox_embed)\.\d+\.(.+)")


def convert_dino_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of official DINO; only `_backbone` of a timm ResNet is supported as backbone.

    Args:
        state_dict: the "model" entry of a published file.

    Returns:
        A state dict for `SemiDetrForObjectDetection`.

    Raises:
        ValueError: naming the entry, if a name is unknown or the copies of a shared head differ.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        copy = _DINO_COPIES.fullmatch(name)
        if copy:
            first = f"{copy[1]}.0.{copy[2]}"
            if first not in state_dict or not torch.equal(tensor, state_dict[first]):
                raise ValueError(f"{name} differs from its copy {first}: per-layer heads are not supported")
            name = first
        renamed = _rename(name)
        if ".self_attn.in_proj_" in renamed:
            # Rows of the stacked projection are query, key, value.
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                converted[renamed.replace("in_proj_", f"{part}_proj.")] = rows
        else:
            converted[renamed] = tensor
    return converted


def _rename(name: str) -> str:
    for pattern, replacement in _DINO_NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    raise ValueError(f"no counterpart for {name!r}: not a checkpoint of official DINO (4-scale, ResNet-50)?")
