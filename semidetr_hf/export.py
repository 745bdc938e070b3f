"""A trained detector as one file for programs without this package: ONNX, or a program of torch.export.

Both take normalised pixels and a mask of real ones, of any batch size, height and width, and return logits and boxes:
the network alone. How pictures become pixels, and outputs become detections, is in the `preprocessing.json` beside it.

The deformable attention samples with `grid_sample` in both, which every runtime knows.

Legend: B images, Q queries, C labels.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from semidetr_hf.data.splits import open_whole
from semidetr_hf.model import SemiDetrForObjectDetection
from semidetr_hf.training.saved_detectors import writing

Format = Literal["onnx", "torch"]
ExportedDetector = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
INT8_FILE, PREPROCESSING_FILE = "model_int8.onnx", "preprocessing.json"
INPUTS, OUTPUTS = ["pixel_values", "pixel_mask"], ["logits", "pred_boxes"]
# Largest difference of a logit or box to the detector that counts as the same; rounding stays far below it.
TOLERANCE = 1e-4
MAX_DETECTIONS = 100  # what the image processor and the pipeline of transformers return at most
CHECKED_BATCHES = (1, 2, 3, 1, 2, 3, 1, 2, 3, 2)  # 20 images


class ExportedFile(NamedTuple):
    """A file that was written, and how far what it returns is from the detector.

    Attributes:
        path: the file.
        megabytes: its size in 10^6 bytes.
        difference: largest one of any logit and box coordinate, over all images of the check.
    """

    path: Path
    megabytes: float
    difference: float


class _NetworkOutputs(nn.Module):
    """The detector with two tensors as its outputs: programs outside of transformers know no other ones."""

    def __init__(self, model: SemiDetrForObjectDetection) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, Q, C) and boxes (B, Q, 4)."""
        outputs = self.model(pixel_values, pixel_mask)
        return outputs.logits, outputs.pred_boxes


def export_detector(
    model: Any,
    processor: Any,
    output: str | Path,
    *,
    file_formats: Sequence[Format] = ("onnx",),
    int8: bool = False,
    progress: bool = True,
) -> list[ExportedFile]:
    """Write a detector as a file for other programs, with `preprocessing.json` beside it, and run what was written.

    The check is on noise: 20 images of different sizes, in padded batches of one to three.

    Args:
        model: a Semi-DETR detector; it is put on the CPU, into float32 and into evaluation mode.
        processor: its image processor.
        output: the folder, made if needed.
        file_formats: "onnx" writes model.onnx; "torch" writes model.pt2, for `torch.export.load`.
        int8: write model_int8.onnx as well, whose linear layers multiply 8-bit integers.
        progress: whether to show a progress bar.

    Returns:
        The files of networks that were written. A difference above `TOLERANCE` is for the caller to judge: that of
        int8 always is.

    Raises:
        ValueError: if it is another detector, int8 is asked of another format than ONNX, or a library is missing.
        OSError: if a file cannot be written; names it.
    """
    if not isinstance(model, SemiDetrForObjectDetection):
        raise ValueError(f"{type(model).__name__} is not a detector of this package; give the folder of a Semi-DETR")
    if int8 and "onnx" not in file_formats:
        raise ValueError("int8 is written as ONNX only; leave out --int8, or choose the format onnx")
    if "onnx" in file_formats:
        require_libraries("onnx", "onnxruntime", "onnxscript")
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output}: a file; give a folder")
    model = model.cpu().float().eval()
    paths = {output / FILES[name]: name for name in file_formats}
    written = []
    with tqdm(total=1 + len(paths) + int8, desc="export", unit=" steps", disable=not progress) as bar:
        edge = smallest_edge(model)
        program = trace(model, edge)
        bar.update()
        for path, name in paths.items():
            _write_network(program, path, name)
            written.append(check(model, path, edge))
            bar.update()
        if int8:
            quantize(output / FILES["onnx"], output / INT8_FILE)
            written.append(check(model, output / INT8_FILE, edge))
            bar.update()
    with open_whole(output / PREPROCESSING_FILE) as file:
        file.write(json.dumps(describe_preprocessing(model, processor, edge), indent=2) + "\n")
    return written


def require_libraries(*names: str) -> None:
    """Raise ValueError if a library is missing, with the command that installs it."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}; install: pip install 'semidetr-hf[export]'")


@torch.no_grad()
def smallest_edge(model: SemiDetrForObjectDetection) -> int:
    """Return the smallest height and width, a multiple of 32 pixels, that an exported network takes.

    torch.export fixes dimensions of size 1 and numbers of queries: each level needs two rows and columns, and all
    levels together as many tokens as there are queries.
    """
    parameter = next(model.parameters())
    for edge in count(96, 32):
        levels = model.model.project(parameter.new_zeros(1, model.config.num_channels, edge, edge))
        areas = [level.shape[-2] * level.shape[-1] for level in levels]
        if min(areas) >= 4 and sum(areas) >= model.config.num_queries:
            return edge
    raise AssertionError("count() has no end")


@torch.no_grad()
def trace(model: SemiDetrForObjectDetection, edge: int) -> torch.export.ExportedProgram:
    """Return a detector as a program of torch.export.

    Args:
        model: on the CPU, in evaluation mode.
        edge: smallest height and width of the images to come, see `smallest_edge`.
    """
    pixel_values, pixel_mask = noise_batch([[edge + 32, edge + 64], [edge + 20, edge + 64]], torch.Generator())
    batch = torch.export.Dim("batch")
    height, width = torch.export.Dim("height", min=edge), torch.export.Dim("width", min=edge)
    shapes = {"pixel_values": {0: batch, 2: height, 3: width}, "pixel_mask": {0: batch, 1: height, 2: width}}
    return torch.export.export(_NetworkOutputs(model), (pixel_values, pixel_mask), dynamic_shapes=shapes, strict=False)


def _write_network(program: torch.export.ExportedProgram, path: Path, file_format: Format) -> None:
    with _replacing(path) as unfinished:
        if file_format == "torch":
            torch.export.save(program, unfinished)
            return
        converted = torch.onnx.export(
            program, (), dynamo=True, verbose=False, input_names=INPUTS, output_names=OUTPUTS, external_data=False
        )
        if converted is None:
            raise RuntimeError("torch.onnx.export returned no program")
        converted.save(unfinished, external_data=False)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden path beside a file, which replaces it at the end, or is removed if the block fails."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        with writing(path, "make room, or give another folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def quantize(path: Path, target: Path) -> None:
    """Write a copy of an ONNX file whose linear layers have 8-bit weights, and round their inputs as they come.

    Convolutions stay as they are: integer ones are slower on the CPU.

    Args:
        path: the ONNX file.
        target: the file to write.

    Raises:
        OSError: if it cannot be written; names it.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import add_pre_process_metadata

    network = onnx.load(path)
    add_pre_process_metadata(network)  # torch has inferred shapes and folded constants, for which it would warn
    with _replacing(target) as unfinished:
        quantize_dynamic(
            network, unfinished, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8, per_channel=True
        )


def open_exported(path: str | Path, num_threads: int | None = None) -> ExportedDetector:
    """Open an exported network for the CPU.

    Args:
        path: a file that `export_detector` wrote.
        num_threads: of ONNX Runtime; None for those of torch.

    Returns:
        A function of pixel_values (B, 3, H, W) float32 and pixel_mask (B, H, W) int64, 1 = real pixel, that returns
        logits (B, Q, C) and pred_boxes (B, Q, 4), cxcywh as shares of the unpadded image.
    """
    path = Path(path)
    if path.suffix == ".pt2":
        network = torch.export.load(path).module()
        return lambda pixel_values, pixel_mask: network(pixel_values, pixel_mask)
    require_libraries("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors; the warnings are about its own rewriting of the graph
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor]:
        found = session.run(OUTPUTS, dict(zip(INPUTS, (pixel_values.numpy(), pixel_mask.numpy()), strict=True)))
        logits, boxes = (torch.from_numpy(array) for array in found)
        return logits, boxes

    return run


@torch.no_grad()
def check(model: SemiDetrForObjectDetection, path: Path, edge: int) -> ExportedFile:
    """Compare an exported network with the detector on noise.

    Args:
        model: on the CPU, in evaluation mode.
        path: the exported file.
        edge: smallest height and width of an image.
    """
    exported = open_exported(path)
    generator = torch.Generator().manual_seed(0)
    differences: list[Tensor] = []
    for num_images in CHECKED_BATCHES:
        sizes = (torch.rand(num_images, 2, generator=generator) * edge / 2 + edge).int().tolist()
        batch = noise_batch(sizes, generator)
        outputs = model(*batch)
        logits, boxes = exported(*batch)
        differences += [(logits - outputs.logits).abs().max(), (boxes - outputs.pred_boxes).abs().max()]
    # The maximum of a tensor, unlike that of Python, keeps a nan.
    return ExportedFile(path, path.stat().st_size / 1e6, float(torch.stack(differences).max()))


def noise_batch(sizes: list[list[int]], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noise as an image processor would return images: padded at the right and at the bottom with zeros.

    Args:
        sizes: (height, width) of every image, in pixels.
        generator: draws the noise.

    Returns:
        pixel_values (B, 3, H, W) and pixel_mask (B, H, W) int64, 1 = real pixel.
    """
    height, width = (max(edges) for edges in zip(*sizes, strict=True))
    pixel_mask = torch.zeros(len(sizes), height, width, dtype=torch.int64)
    for mask, (rows, columns) in zip(pixel_mask, sizes, strict=True):
        mask[:rows, :columns] = 1
    noise = torch.randn(len(sizes), 3, height, width, generator=generator)
    return noise * pixel_mask[:, None], pixel_mask


def describe_preprocessing(model: SemiDetrForObjectDetection, processor: Any, edge: int) -> dict[str, Any]:
    """Return what another program needs to know around the network: from pictures to pixels, from outputs to boxes."""
    settings = processor.to_dict()
    return {
        "inputs": {
            "pixel_values": "(B, 3, H, W) float32: RGB, resized, rescaled, normalised; then padded with 0 at the "
            "right and at the bottom to the largest image of the batch",
            "pixel_mask": "(B, H, W) int64: 1 = pixel of the image, 0 = padding",
            "smallest_edge": edge,  # smaller images are padded to it
        },
        "size": settings["size"],
        "resample": Image.Resampling(settings["resample"]).name.lower(),
        "rescale_factor": settings["rescale_factor"],
        "image_mean": settings["image_mean"],
        "image_std": settings["image_std"],
        "outputs": {
            "logits": "(B, Q, C): sigmoid gives the score of every query and label",
            "pred_boxes": "(B, Q, 4): centre x, centre y, width, height as shares of the image without padding",
            "detections": "the max_detections best of all pairs of query and label; with nms_iou, those above "
            "nms_min_score, and of two boxes of a label that overlap more than nms_iou only the better one",
        },
        "max_detections": MAX_DETECTIONS,
        # Not in the settings, where they have the value of the class; other processors of transformers have none.
        "nms_iou": getattr(processor, "nms_iou", None),
        "nms_min_score": getattr(processor, "nms_min_score", None),
        "id2label": model.config.id2label,
        "category_ids": getattr(model.config, "category_ids", None),
    }
