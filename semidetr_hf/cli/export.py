"""`semidetr export`: a saved detector as a file for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Folder of a saved detector, such as runs/mine/best.")],
    output: Annotated[Path, typer.Option(help="Folder for the file and preprocessing.json.")],
    file_format: Annotated[
        Literal["onnx", "torch", "both"],
        typer.Option("--format", help="onnx for ONNX Runtime and others, torch for torch.export.load, or both."),
    ] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="Write model_int8.onnx as well: smaller, and not the same numbers.")
    ] = False,
) -> int:
    """Write a detector as a file for programs without this package.

    What was written is run on 20 images of noise beside the detector; the exit code is 1 if a number is off by more
    than 0.0001. What 8 bits cost in AP depends on the detector: measure it.

    Example: semidetr export runs/mine/best --output exported --int8
    """
    from semidetr_hf.export import INT8_FILE, TOLERANCE, Format, export_detector
    from semidetr_hf.training.saved_detectors import load_detector

    detector, processor = load_detector("MODEL", model)
    file_formats: tuple[Format, ...] = ("onnx", "torch") if file_format == "both" else (file_format,)
    failed = False
    for file in export_detector(
        detector, processor, output, file_formats=file_formats, int8=int8, progress=not context.obj.quiet
    ):
        wrong = file.path.name != INT8_FILE and not file.difference <= TOLERANCE  # so a nan is wrong, too
        failed |= wrong
        verdict = f", more than {TOLERANCE:g}: do not use this file" if wrong else ""
        typer.echo(f"{file.path}: {file.megabytes:.1f} MB, largest difference {file.difference:.2g}{verdict}")
    return int(failed)
