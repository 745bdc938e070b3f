"""`semidetr report`: one HTML file to look at instead of the logs of a run."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    context: typer.Context,
    run_folder: Annotated[Path, typer.Argument(help="The output_dir of a training, finished or not.")],
    output: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default="report.html in the folder of the run")
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option(
            help="Load the saved networks: evaluate the kept one on the validation images, let the teacher label a "
            "few unlabeled ones. Without it the report is made of logs and data alone."
        ),
    ] = True,
    pictures: Annotated[int, typer.Option(min=0, help="Best, worst and unlabeled images that are shown, each.")] = 6,
) -> None:
    """Write one self-contained HTML file about a run, which opens without a network.

    It shows the result, curves with the stages marked, AP and confusions of the classes, pseudo-labels, the best and
    worst images, the data and the settings.

    Example: semidetr report runs/mine
    """
    from transformers.utils.logging import disable_progress_bar

    from semidetr_hf.report.page import write_report

    disable_progress_bar()  # of loading; the one of evaluating stays
    path = write_report(run_folder, output, evaluates=evaluate, num_pictures=pictures, progress=not context.obj.quiet)
    typer.echo(f"the report: {path}")
