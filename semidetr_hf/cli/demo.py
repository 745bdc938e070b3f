"""`semidetr demo`: a page in the browser to try a detector."""

from typing import Annotated

import typer


def demo(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="Folder of a saved detector, its id on the Hub, or the output_dir of a training.",
            metavar="MODEL_OR_RUN",
        ),
    ],
    examples: Annotated[
        str | None,
        typer.Option(
            help="Pictures to begin with: whatever --unlabeled of train takes.",
            show_default="validation images of a training",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="Port of the page.", show_default="the first free one from 7860", min=1, max=65535),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Also make a public address, through a server of gradio's makers.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1; an accelerator, if there is one.")] = None,
) -> None:
    """Try a detector on a page in the browser.

    It takes pictures from files, the webcam or the clipboard, and shows boxes, a table and json; a threshold, a switch
    against duplicates and the classes choose which. For a training it also shows the teacher's pseudo-labels beside
    what the student finds. Ctrl+C ends it.

    Example: semidetr demo runs/mine
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ValueError("the page needs gradio; install it: pip install 'semidetr-hf[demo,train]'")
    from semidetr_hf.demo_page.opening import open_page
    from semidetr_hf.demo_page.page import serve

    serve(open_page(model, examples, device=device), port=port, share=share, quiet=context.obj.quiet)
