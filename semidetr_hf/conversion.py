"""Published checkpoints of official DINO and of Semi-DETR -> a detector of this package, as function and as command.

    python -m semidetr_hf.conversion CHECKPOINT OUTPUT_FOLDER [--network student] [--categories FILE.json]

Source: the layouts of official DINO (arXiv 2203.03605: `{"model": ..., "ema_model": ...}`) and of the released code of
Semi-DETR (arXiv 2307.08095: `{"meta": ..., "state_dict": ...}` with `teacher.`, `student.` and `projector.`, or one
network without a prefix). Unlike there, files are read without running code in them, equal copies of the heads become
one, and a report accounts for every entry.
"""

import argparse
import pickle
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from torch import Tensor

from semidetr_hf.conversion_tables import (
    CLASS_ROWS,
    ConversionReport,
    Labels,
    belongs_to_projector,
    labels_of,
    read_categories,
    sizes_of,
    sort_entries,
)
from semidetr_hf.model import SemiDetrConfig, SemiDetrForObjectDetection, SemiDetrImageProcessor

# Network -> where it may be in a file, best first. The averaged network of official DINO is its teacher.
PARTS = {"teacher": ("ema_model", "model", "state_dict"), "student": ("model", "state_dict")}
# Duplicates are suppressed above this IoU in the one-to-many stage. Source: released Semi-DETR code.
NMS_IOU = 0.6
# Bounds inside the logarithms of each source.
_EPS: dict[str, dict[str, Any]] = {
    "dino": {"inverse_sigmoid_eps": 1e-3, "matcher_eps": 1e-8},
    "semidetr": {"inverse_sigmoid_eps": 1e-5, "matcher_eps": 1e-12},
}
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
# What published files hold beside tensors and plain values, none of which runs code: official DINO stores its
# arguments as a Namespace, and mmcv's meta may hold numpy scalars (best scores, seeds), under numpy's old or new name.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64")},
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A published file as it was read.

    Attributes:
        family: `dino` or `semidetr`.
        network: which part of the file the detector is taken from.
        prefix: what the names of that part begin with, "" if nothing.
        state_dict: entries of the file; of a DINO file only those of `network`.
        class_names: from the file, None if it has none.
        iteration: of the training, None if unknown.
        other_parts: top-level parts that are not converted, such as `optimizer`.
    """

    family: str
    network: str
    prefix: str
    state_dict: dict[str, Tensor]
    class_names: list[str] | None
    iteration: int | None
    other_parts: tuple[str, ...]


def convert_checkpoint(
    path: str | Path,
    *,
    network: str = "teacher",
    keep_91_classes: bool = False,
    allow_missing: bool = False,
    categories: dict[int, str] | None = None,
    backbone: str | None = None,
) -> tuple[SemiDetrForObjectDetection, ConversionReport]:
    """Turn a published file into a detector.

    Args:
        path: a `.pth` file of official DINO or of Semi-DETR.
        network: `teacher` (also the averaged `ema_model` of a DINO file) or `student`. A file with one network gives
            that one.
        keep_91_classes: keep all class rows of official DINO; by default those of COCO's 80 categories.
        allow_missing: leave tensors that the file does not give at their random start instead of raising.
        categories: category id -> name; None = the names in the file, else COCO's 80, VOC's 20 or `label_i`.
        backbone: timm's name of the backbone; None = recognize a ResNet by its blocks.

    Returns:
        The detector, in evaluation mode, and what became of every entry.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read without running code, is of another kind, lacks tensors, holds tensors
            of another shape, or its heads differ between layers; the message is one line and names them.
    """
    return _build_detector(
        read_checkpoint(path, network=network),
        keep_all_rows=keep_91_classes,
        allow_missing=allow_missing,
        categories=categories,
        backbone=backbone,
    )


def convert_dino_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of official DINO with a ResNet; all class rows are kept.

    Args:
        state_dict: the "model" entry of a published file.

    Returns:
        A state dict for `SemiDetrForObjectDetection`.

    Raises:
        ValueError: naming the entry, if a name is unknown or the copies of a shared head differ.
    """
    return _without_unknown_entries(*sort_entries(state_dict, "dino"))


def convert_semidetr_state_dict(state_dict: dict[str, Tensor], network: str = "teacher") -> dict[str, Tensor]:
    """Rename one network of a Semi-DETR state dict.

    Args:
        state_dict: the "state_dict" entry of a published file.
        network: `teacher` or `student`; without such prefixes in the file, its only network.

    Returns:
        A state dict for `SemiDetrForObjectDetection`, without the projector.

    Raises:
        ValueError: naming the entry, if a name is unknown or the copies of a shared head differ; if the network asked
            for is not there.
    """
    return _without_unknown_entries(*sort_entries(state_dict, "semidetr", _prefix(state_dict, network)))


def convert_projector_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of the projector in a Semi-DETR state dict, by its own names; empty if it has none."""
    return {
        name.removeprefix("projector."): tensor for name, tensor in state_dict.items() if belongs_to_projector(name)
    }


def read_checkpoint(path: str | Path, *, network: str = "teacher") -> Checkpoint:
    """Read a published file without running code in it, and tell what it is; arguments and errors as above."""
    if network not in PARTS:
        raise ValueError(f"network must be one of {', '.join(PARTS)}, got {network!r}")
    content = _load(Path(path))
    part = next((name for name in PARTS[network] if name in content), None)
    state_dict = content if part is None else content[part]
    if not isinstance(state_dict, dict) or not state_dict:
        raise ValueError(f"{path}: its entry {part!r} is no state dict but {type(state_dict).__name__}, or empty")
    strange = [name for name, value in state_dict.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if strange:
        raise ValueError(f"{path}: no state dict: {strange[0]!r} is not a tensor with a name; give one")
    if all(name.startswith("module.") for name in state_dict):
        state_dict = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    if any("bbox_head." in name for name in state_dict):
        family, prefix = "semidetr", _prefix(state_dict, network)
    elif any(name.startswith(("transformer.", "class_embed.")) for name in state_dict):
        family, prefix = "dino", ""
    else:
        names = ", ".join(list(state_dict)[:3])
        raise ValueError(f"{path}: neither official DINO nor Semi-DETR; its entries begin with {names}")
    meta = content["meta"] if isinstance(content.get("meta"), dict) else {}
    classes, iteration = meta.get("CLASSES"), meta.get("iter")
    return Checkpoint(
        family=family,
        network=prefix.removesuffix(".") or part or "the only one",
        prefix=prefix,
        state_dict=state_dict,
        class_names=[str(name) for name in classes] if isinstance(classes, list | tuple) else None,
        iteration=int(iteration) if isinstance(iteration, int | np.integer) else None,
        other_parts=() if part is None else tuple(name for name in content if name != part),
    )


def save_converted(
    model: SemiDetrForObjectDetection,
    output: str | Path,
    *,
    projector: dict[str, Tensor] | None = None,
    nms_iou: float | None = None,
) -> None:
    """Write a detector, its image processor and perhaps a projector into a new folder, all or nothing.

    Args:
        model: as converted.
        output: must not exist, or be an empty folder.
        projector: written as `projector.safetensors` unless empty.
        nms_iou: attribute of the image processor: suppress detections of the same class above this IoU; None = off.

    Raises:
        FileExistsError: if `output` is a file or holds something.
    """
    output = Path(output).absolute()
    _require_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {} if nms_iou is None else {"nms_iou": nms_iou}
    processor = SemiDetrImageProcessor(**options)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        folder = Path(temporary) / output.name
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        if projector:
            tensors = {name: tensor.contiguous() for name, tensor in projector.items()}
            save_file(tensors, folder / "projector.safetensors", metadata={"format": "pt"})
        if output.exists():
            output.rmdir()
        folder.rename(output)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file raises whatever its bytes lead the parsers to: UnpicklingError, RuntimeError, even IndexError.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        refused = re.search(r"GLOBAL (\S+)", reason) if isinstance(error, pickle.UnpicklingError) else None
        if refused is None:
            if isinstance(error, pickle.UnpicklingError):
                reason = "its bytes are no saved tensors"  # torch advises to load it unsafely, which would not help
            raise ValueError(f"{path}: not a checkpoint of torch, or a damaged one ({reason[:200]})") from error
        raise ValueError(
            f"{path}: holds an object of {refused[1]}, and loading it could run code. If you trust the file, load it "
            "with weights_only=False where that class is installed, and save its tensors alone: "
            "torch.save({'state_dict': checkpoint['state_dict']}, 'tensors.pth') ('model' for official DINO)"
        ) from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: not a checkpoint but {type(content).__name__} (or an empty dictionary)")
    return content


def _prefix(state_dict: dict[str, Tensor], network: str) -> str:
    """Return what the entries of a Semi-DETR network begin with: `teacher.`, `student.` or "" for the only one."""
    present = [name for name in PARTS if any(entry.startswith(f"{name}.") for entry in state_dict)]
    if present and network not in present:
        raise ValueError(f"the checkpoint has no network {network!r}; it has {', '.join(present)}")
    return f"{network}." if present else ""


def _without_unknown_entries(tensors: dict[str, Tensor], report: ConversionReport) -> dict[str, Tensor]:
    if report.unmatched:
        names = ", ".join(repr(name) for name in report.unmatched[:3])
        raise ValueError(
            f"no counterpart for {len(report.unmatched)} entries ({names}); only ResNet backbones are known"
        )
    return tensors


def _build_detector(
    checkpoint: Checkpoint,
    *,
    keep_all_rows: bool,
    allow_missing: bool,
    categories: dict[int, str] | None,
    backbone: str | None,
) -> tuple[SemiDetrForObjectDetection, ConversionReport]:
    tensors, report = sort_entries(checkpoint.state_dict, checkpoint.family, checkpoint.prefix)
    report.other_parts += checkpoint.other_parts
    sizes = sizes_of(tensors, backbone)
    num_rows = len(tensors["class_head.bias"])
    labels = labels_of(
        num_rows,
        by_category_id=checkpoint.family == "dino",
        categories=categories,
        class_names=checkpoint.class_names,
        keep_all_rows=keep_all_rows,
    )
    if len(labels.rows) < num_rows:
        report.dropped_rows += sorted(set(range(num_rows)) - set(labels.rows))
        short = [name for name in CLASS_ROWS if name in tensors and len(tensors[name]) <= max(labels.rows)]
        if short:
            raise ValueError(f"{short[0]} has {len(tensors[short[0]])} rows, too few for category {max(labels.rows)}")
        tensors.update({name: tensors[name][labels.rows] for name in CLASS_ROWS if name in tensors})
    model = SemiDetrForObjectDetection(_config(checkpoint.family, sizes, labels, tensors))
    _fill(model, tensors, report, allow_missing)
    return model.eval(), report


def _config(family: str, sizes: dict[str, Any], labels: Labels, tensors: dict[str, Tensor]) -> SemiDetrConfig:
    table = tensors.get("label_embedding.weight")
    try:
        return SemiDetrConfig(
            **sizes,
            **_EPS[family],
            id2label=dict(enumerate(labels.names)),
            label2id={name: i for i, name in enumerate(labels.names)},
            category_ids=labels.category_ids,
            label_embedding_rows=None if table is None else len(table),
        )
    except StrictDataclassError as error:
        raise ValueError(f"the sizes in the checkpoint are impossible here: {' '.join(str(error).split())}") from error


def _fill(
    model: SemiDetrForObjectDetection, tensors: dict[str, Tensor], report: ConversionReport, allow_missing: bool
) -> None:
    own = model.state_dict()
    for entry in [entry for entry, names in report.converted.items() if not own.keys() >= set(names)]:
        report.unmatched.append(entry)
        del report.converted[entry]
    other_shape = [name for name in tensors if name in own and tensors[name].shape != own[name].shape]
    if other_shape:
        name = other_shape[0]
        raise ValueError(
            f"{len(other_shape)} tensors are of another shape, first {name}: {tuple(tensors[name].shape)} in the "
            f"file, {tuple(own[name].shape)} in the model; if the backbone is no plain ResNet, give timm's name for it"
        )
    report.missing += [name for name in own if name not in tensors]
    if report.missing and not allow_missing:
        unmatched = f"; no counterpart for {', '.join(report.unmatched[:5])}" if report.unmatched else ""
        raise ValueError(
            f"the checkpoint lacks {len(report.missing)} of {len(own)} tensors: {', '.join(report.missing[:5])}"
            f"{' ...' if len(report.missing) > 5 else ''}{unmatched}; allow_missing leaves them random"
        )
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in own}, strict=False)


def _require_new(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: exists already; give another folder or remove it")


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="semidetr_hf.conversion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help=".pth file of official DINO or Semi-DETR")
    parser.add_argument("output", help="new folder for the detector and its image processor")
    parser.add_argument("--network", choices=tuple(PARTS), default="teacher", help="which one (default: teacher)")
    parser.add_argument("--categories", help="COCO json with ids and names of the classes (default: from the file)")
    parser.add_argument("--keep_91_classes", action="store_true", help="keep all class rows of official DINO")
    parser.add_argument("--allow_missing", action="store_true", help="leave what the file lacks at random values")
    parser.add_argument("--backbone", help="timm's name of the backbone (default: the ResNet that fits)")
    parser.add_argument(
        "--one_to_many_steps", type=int, help="a Semi-DETR file of at most this iteration needs NMS at inference"
    )
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> ConversionReport:
    """Convert and save as the arguments say."""
    _require_new(Path(args.output))
    if args.categories is not None and not Path(args.categories).is_file():
        raise FileNotFoundError(f"--categories {args.categories}: no such file; give a COCO json")
    categories = None if args.categories is None else read_categories(args.categories)
    checkpoint = read_checkpoint(args.checkpoint, network=args.network)
    nms_iou = None
    if args.one_to_many_steps is not None:
        if checkpoint.iteration is None:
            raise ValueError(f"{args.checkpoint}: has no meta['iter'] to compare with --one_to_many_steps")
        nms_iou = NMS_IOU if checkpoint.iteration <= args.one_to_many_steps else None
    model, report = _build_detector(
        checkpoint,
        keep_all_rows=args.keep_91_classes,
        allow_missing=args.allow_missing,
        categories=categories,
        backbone=args.backbone,
    )
    save_converted(model, args.output, projector=convert_projector_state_dict(checkpoint.state_dict), nms_iou=nms_iou)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 after the report on stdout, or 1 after one line on stderr that says what is wrong."""
    args = parse_args(arguments)
    try:
        report = run(args)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        # Content is checked where the name of its file is no longer known.
        is_named = isinstance(error, OSError) or reason.startswith((args.checkpoint, str(args.categories)))
        sys.stderr.write(f"semidetr_hf.conversion: error: {'' if is_named else f'{args.checkpoint}: '}{reason}\n")
        return 1
    sys.stdout.write("\n".join([*report.lines(), f"written to {args.output}"]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
