"""The command line: which commands there are, what all of them share, and how an error looks.

A new command is a function in a file of its own here, and one line in the list below: `app.command()(convert)`. Its
docstring is its help, its arguments are its options, and what it returns is the exit code, None for 0. It raises
ValueError or OSError with one line that says what is wrong and the way out. Libraries and the parts of this package
are imported inside the function, since `semidetr --help` and the completion of the Tab key must not wait for torch.
"""

import logging
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import typer

from semidetr_hf import __version__
from semidetr_hf.cli.convert import convert
from semidetr_hf.cli.demo import demo
from semidetr_hf.cli.eval import evaluate
from semidetr_hf.cli.export import export
from semidetr_hf.cli.label import label
from semidetr_hf.cli.predict import predict
from semidetr_hf.cli.push import push
from semidetr_hf.cli.report import report
from semidetr_hf.cli.split import split
from semidetr_hf.cli.train import TAKES_ANY_FLAG, train
from semidetr_hf.cli.validate import validate

USAGE_ERROR = 2

EXIT_CODES = (
    "Exit codes: 0 for success, 1 if a check failed or a run broke off, 2 for wrong arguments, settings or files, "
    "130 after Ctrl+C, 143 after SIGTERM. What is wrong is one line."
)

app = typer.Typer(name="semidetr", pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(validate)
app.command()(convert)
app.command(**TAKES_ANY_FLAG)(train)
app.command("eval")(evaluate)
app.command()(predict)
app.command()(label)
app.command()(demo)
app.command()(report)
app.command()(split)
app.command()(export)
app.command()(push)


class Output(NamedTuple):
    """What a command finds in `context.obj`."""

    quiet: bool


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"semidetr {__version__}")
        raise typer.Exit


@app.callback(epilog=EXIT_CODES)
def semidetr(
    context: typer.Context,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only results and errors; train keeps its bar.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell more of what is done.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Semi-supervised object detection with detection transformers."""
    if quiet and verbose:
        raise ValueError("--quiet contradicts --verbose; leave one of them out")
    if context.invoked_subcommand != "train":  # which has a log of its own
        level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
        logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    context.obj = Output(quiet=quiet)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: of the command line; None for those of the process.

    Returns:
        The exit code; that of an interrupt, 130, is typer's.
    """
    try:
        return app(args=arguments, prog_name="semidetr", standalone_mode=False) or 0
    except typer.TyperException as error:
        message = error.format_message()
    except (ValueError, OSError) as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("semidetr_hf"):
            raise
        # transformers says that one of its own modules is missing, and only as the cause which library is.
        message = f"{error.__cause__ or error}; install what the command needs: pip install 'semidetr-hf[train]'"
    typer.echo(f"semidetr: error: {' '.join(message.split())}", err=True)
    return USAGE_ERROR
