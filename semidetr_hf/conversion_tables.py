"""What is in published checkpoints of DINO and Semi-DETR: entries and their names here, sizes, classes.

Where in the paper: nowhere; the names are those of the state dicts of official DINO (arXiv 2203.03605, 4-scale,
ResNet-50, 626 entries) and of the released Semi-DETR code (arXiv 2307.08095, 631 entries per network). How it differs
from them: both store one class head and one box head per decoder layer, all equal; here there is one of each.
Semi-DETR names are first turned into those of official DINO, so that there is one table of what becomes what.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Semi-DETR, one network -> official DINO.
_SEMIDETR_NAMES = (
    (r"backbone\.(.+)", r"backbone.0.body.\1"),
    (r"bbox_head\.fc_cls\.(.+)", r"class_embed.\1"),
    (r"bbox_head\.fc_reg\.(.+)", r"bbox_embed.\1"),
    (r"bbox_head\.fc_enc_cls\.(.+)", r"transformer.enc_out_class_embed.\1"),
    (r"bbox_head\.fc_enc_reg\.(.+)", r"transformer.enc_out_bbox_embed.\1"),
    (r"bbox_head\.((?:input_proj|label_enc|transformer)\..+)", r"\1"),
)
# Official DINO -> here. The decoder's self-attention is stacked there and is split by the converter.
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
# Heads that official DINO stores once per layer and again inside the decoder.
_DINO_COPIES = re.compile(r"(?:transformer\.decoder\.)?(class_embed|bbox_embed)\.\d+\.(.+)")

# Tensors with one row per class, whatever the model's labels are.
CLASS_ROWS = (
    "class_head.weight",
    "class_head.bias",
    "model.proposal_class_head.weight",
    "model.proposal_class_head.bias",
    "label_embedding.weight",
)
# Modules of the network between RoI features and consistency queries; named alike there and here.
PROJECTOR_MODULES = ("conv1", "bn1", "conv2", "bn2", "fc1", "bn", "fc2")

_NETWORK_PREFIXES = ("teacher.", "student.")
# Shapes give the product of heads and sampling points only; both sources sample four points.
NUM_POINTS = 4
# Feature levels of a timm ResNet: the stem and four layers.
NUM_STAGES = 5

# (three convolutions per block, blocks per stage) -> name of the network in timm.
RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}

COCO_NAMES = (
    "person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter|"
    "bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|skis|"
    "snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|"
    "fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|"
    "potted plant|bed|dining table|toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|"
    "refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush"
).split("|")
# COCO's ids run from 1 to 90; these ten are not in use.
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
# Official DINO has a row for every number up to the largest id.
MAX_COCO_ROWS = 91
VOC_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
    "sheep sofa train tvmonitor"
).split()


@dataclass(kw_only=True)
class ConversionReport:
    """Where every entry of a checkpoint went: lists of names, as they stand in the file unless said otherwise.

    Attributes:
        converted: entry -> the tensors of the detector that hold its values.
        unmatched: entries without counterpart in the detector; not used.
        missing: tensors of the detector, by their name here, that the file does not give; they stay random.
        collapsed: entries that are equal copies of a converted one.
        counters: step counters of frozen norms (`num_batches_tracked`), not needed.
        projector: entries of the projector of consistency queries, see `conversion.convert_projector_state_dict`.
        other_network: entries of the network that was not asked for.
        other_parts: top-level parts that are not converted, such as `optimizer`.
        dropped_rows: rows of the class heads that belong to no category (official DINO counts by COCO's ids).
    """

    converted: dict[str, list[str]] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    collapsed: list[str] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)
    projector: list[str] = field(default_factory=list)
    other_network: list[str] = field(default_factory=list)
    other_parts: list[str] = field(default_factory=list)
    dropped_rows: list[int] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as text: counts, and the names of what is unexpected."""
        listed: dict[str, list[Any]] = {
            "unmatched, not used": self.unmatched,
            "missing, left random": self.missing,
            "parts not converted": self.other_parts,
            "class rows without a category, dropped": self.dropped_rows,
        }
        return [
            f"converted: {len(self.converted)} entries",
            f"copies of shared heads, equal, collapsed: {len(self.collapsed)}",
            *(f"{title}: {', '.join(map(str, names)) or 'none'}" for title, names in listed.items()),
            f"num_batches_tracked, not needed: {len(self.counters)}",
            f"projector, kept apart: {len(self.projector)}",
            f"other network, not used: {len(self.other_network)}",
        ]


@dataclass(frozen=True)
class Labels:
    """The labels of a detector and which class rows of the file they are; category ids None = unknown."""

    names: list[str]
    rows: list[int]
    category_ids: list[int] | None


def belongs_to_projector(name: str) -> bool:
    """Tell whether an entry of a Semi-DETR file is one of the projector of consistency queries."""
    first, *rest = name.split(".")
    return first == "projector" and len(rest) > 1 and rest[0] in PROJECTOR_MODULES


def sort_entries(
    state_dict: dict[str, Tensor], family: str, prefix: str = ""
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Return the tensors of one network by their name here, and where each entry of the file went.

    Args:
        state_dict: as in the file.
        family: `dino` or `semidetr`.
        prefix: what the names of the network begin with: `teacher.`, `student.` or "".

    Returns:
        Tensors under the names of `SemiDetrForObjectDetection`; all class rows, values not copied. A report in which
        `missing` is still empty.

    Raises:
        ValueError: if a head of one layer differs from that of the first one.
    """
    report = ConversionReport()
    official: dict[str, str] = {}  # name in official DINO -> name in the file
    for name in state_dict:
        dino_name: str | None = name
        if family == "semidetr":
            if belongs_to_projector(name):
                report.projector.append(name)
                continue
            if prefix and name.startswith(_NETWORK_PREFIXES) and not name.startswith(prefix):
                report.other_network.append(name)
                continue
            dino_name = _first_match(_SEMIDETR_NAMES, name.removeprefix(prefix)) if name.startswith(prefix) else None
        if dino_name is None or _first_match(_DINO_NAMES, _original_of(dino_name)) is None:
            report.unmatched.append(name)
        elif name.endswith(".num_batches_tracked"):
            report.counters.append(name)
        else:
            official[dino_name] = name
    tensors: dict[str, Tensor] = {}
    for dino_name, name in official.items():
        original = _original_of(dino_name)
        if original == dino_name:
            placed = _place(str(_first_match(_DINO_NAMES, original)), state_dict[name])
            report.converted[name] = list(placed)
            tensors.update(placed)
            continue
        first = official.get(original)
        if first is None or not torch.equal(state_dict[name], state_dict[first]):
            raise ValueError(f"{name} differs from its copy {first or original}: per-layer heads are not supported")
        report.collapsed.append(name)
    return tensors, report


def _place(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return one entry under its name here, or three: the rows of a stacked projection are query, key, value."""
    if ".self_attn.in_proj_" not in name:
        return {name: tensor}
    return {name.replace("in_proj_", f"{part}_proj."): rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}


def read_categories(path: str | Path) -> dict[int, str]:
    """Read category ids and names from a COCO json (or a list of `{"id", "name"}`), in the order of the ids.

    Raises:
        ValueError: if the file holds something else, or an id twice.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = content["categories"] if isinstance(content, dict) else content
        pairs = sorted((int(row["id"]), str(row["name"])) for row in rows)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: not a json with categories, each with id and name ({error!r})") from error
    if not pairs or len(dict(pairs)) < len(pairs):
        raise ValueError(f"{path}: {len(pairs)} categories with {len(dict(pairs))} different ids")
    return dict(pairs)


def sizes_of(tensors: dict[str, Tensor], backbone: str | None = None) -> dict[str, Any]:
    """Return the fields of `SemiDetrConfig` that the shapes of converted tensors tell.

    Args:
        tensors: from `sort_entries`.
        backbone: timm's name; None = the ResNet with these blocks.

    Raises:
        ValueError: if a tensor that tells a size is missing, no ResNet has these blocks, or attention weights do not
            belong to four sampling points.
    """

    def shape(name: str) -> torch.Size:
        if name not in tensors:
            raise ValueError(f"the checkpoint has nothing that becomes {name}, which tells a size of the model")
        return tensors[name].shape

    num_levels, (num_queries, d_model) = shape("model.level_embedding.weight")[0], shape("model.query_content.weight")
    # The backbone's levels have 1x1 projections; they are its last ones.
    kernels = [shape(f"model.input_proj.{level}.0.weight")[-1] for level in range(num_levels)]
    backbone_config = {
        "model_type": "timm_backbone",
        "backbone": backbone or _resnet(tensors),
        "out_indices": list(range(NUM_STAGES - kernels.count(1), NUM_STAGES)),
    }
    attention = {
        "encoder": shape("model.encoder.layers.0.self_attn.attention_weights.bias")[0],
        "decoder": shape("model.decoder.layers.0.cross_attn.attention_weights.bias")[0],
    }
    shape("class_head.bias")  # its length, read by the caller, is the number of classes
    sizes: dict[str, Any] = {"backbone_config": backbone_config, "d_model": d_model, "num_queries": num_queries}
    sizes["num_feature_levels"] = num_levels
    for part, outputs in attention.items():
        heads, rest = divmod(outputs, num_levels * NUM_POINTS)
        if rest:
            raise ValueError(
                f"{outputs} attention weights of the {part} are not heads x {num_levels} levels x {NUM_POINTS} points"
            )
        numbers = {int(name.split(".")[3]) for name in tensors if name.startswith(f"model.{part}.layers.")}
        sizes[f"{part}_layers"] = max(numbers) + 1
        sizes[f"{part}_attention_heads"] = heads
        sizes[f"{part}_n_points"] = NUM_POINTS
        sizes[f"{part}_ffn_dim"] = shape(f"model.{part}.layers.0.mlp.fc1.weight")[0]
    return sizes


def labels_of(
    num_rows: int,
    *,
    by_category_id: bool,
    categories: dict[int, str] | None = None,
    class_names: list[str] | None = None,
    keep_all_rows: bool = False,
) -> Labels:
    """Choose the labels of a detector.

    Args:
        num_rows: class rows of the file.
        by_category_id: rows are counted by category id, as in official DINO, else one after the other.
        categories: category id -> name, None = unknown.
        class_names: from the file, None = unknown.
        keep_all_rows: keep also rows of official DINO that belong to no category.

    Returns:
        Names from `categories`, else from `class_names`, else COCO's for 91 rows by category id or 80 rows, VOC's for
        20, else `label_i`.

    Raises:
        ValueError: if the categories or names do not fit the rows.
    """
    if by_category_id and categories is None and num_rows == MAX_COCO_ROWS:
        categories = dict(zip(COCO_IDS, COCO_NAMES, strict=True))
    if by_category_id and categories is not None:
        ids = list(range(num_rows)) if keep_all_rows else sorted(categories)
        if min(categories) < 0 or max(categories) >= num_rows:
            raise ValueError(
                f"category ids run from {min(categories)} to {max(categories)}, the file has {num_rows} class rows, "
                "which official DINO counts by category id; give categories whose ids are the numbers of rows"
            )
        return Labels([categories.get(i, f"label_{i}") for i in ids], ids, ids)
    rows = list(range(num_rows))
    known = {len(COCO_NAMES): COCO_NAMES, len(VOC_NAMES): VOC_NAMES}
    names = class_names or known.get(num_rows) or [f"label_{i}" for i in rows]
    if categories is not None:
        names = [categories[i] for i in sorted(categories)]
    if len(names) != num_rows:
        raise ValueError(
            f"{len(names)} categories ({', '.join(names[:3])} ...) for {num_rows} class rows; give categories, as many"
        )
    if categories is not None:
        return Labels(names, rows, sorted(categories))
    return Labels(names, rows, COCO_IDS if names == COCO_NAMES else None)


def _original_of(dino_name: str) -> str:
    """Return the entry of official DINO that this one is a copy of; the entry itself if it is no copy."""
    copy = _DINO_COPIES.fullmatch(dino_name)
    return f"{copy[1]}.0.{copy[2]}" if copy else dino_name


def _resnet(tensors: dict[str, Tensor]) -> str:
    blocks: dict[int, int] = {}
    for name in tensors:
        match = re.match(r"model\.backbone\._backbone\.layer([1-4])\.(\d+)\.", name)
        if match:
            blocks[int(match[1])] = max(blocks.get(int(match[1]), 0), int(match[2]) + 1)
    depths = tuple(blocks[stage] for stage in sorted(blocks))
    bottleneck = "model.backbone._backbone.layer1.0.conv3.weight" in tensors
    if (bottleneck, depths) not in RESNETS:
        raise ValueError(
            f"no ResNet has blocks {depths}; only ResNet backbones are recognized, name others (backbone)"
        )
    return RESNETS[bottleneck, depths]


def _first_match(table: tuple[tuple[str, str], ...], name: str) -> str | None:
    for pattern, replacement in table:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None
