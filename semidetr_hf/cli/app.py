"""The command line: which commands there are, what all of them share, and how an error looks.

A new command is a function in a file of its own here, and one line in the list below: `app.command()(convert)`. Its
docstring is its help, its arguments are its options, and what it returns is the exit code, None for 0. It raises
ValueError or OSError with one line that says what is wrong and the way out. Libraries and the parts of this package
are imported inside the function, since `semidetr --help` and the completion of the Tab key must not wait for torch.
"""

from collections.abc import Sequence

import typer

from semidetr_hf.cli.validate import validate

USAGE_ERROR = 2

app = typer.Typer(name="semidetr", pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(validate)


@app.callback()
def semidetr() -> None:
    """Semi-supervised object detection with detection transformers.

    Exit codes: 0 for success, 1 if a check failed, 2 for wrong arguments or files, 130 after Ctrl+C. What is wrong is
    one line.
    """


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
    typer.echo(f"semidetr: error: {' '.join(message.split())}", err=True)
    return USAGE_ERROR
