"""`semidetr push`: a saved detector onto the Hub."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer


def push(
    model: Annotated[Path, typer.Argument(help="Folder of a saved detector, such as runs/mine/best.")],
    repository: Annotated[str, typer.Argument(help="NAME or OWNER/NAME on the Hub; made if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="If it is made now, make it private.")] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload detector",
    license: Annotated[str, typer.Option(help="Licence of the weights, as the Hub calls it.")] = "apache-2.0",
    example: Annotated[
        list[Path], typer.Option(help="A picture for visitors to try the detector on; it becomes public. Repeatable.")
    ] = [],  # noqa: B006  typer shows the default and never changes it
    also: Annotated[
        list[Path],
        typer.Option(
            help="Folder of a detector of the same recipe with other labels or another seed, such as runs/seed1/best; "
            "its AP is told on the page, too. Repeatable."
        ),
    ] = [],  # noqa: B006
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which everything is put together and stays, to look at.", show_default="a temporary one"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be uploaded.")] = False,
) -> None:
    """Upload a detector to the Hub.

    With it go the code that loads it, for trust_remote_code=True, a handler for Inference Endpoints, and a page that
    tells how it was trained, with AP and curves, if the folder is that of a run. A README.md in the folder takes the
    place of that page. Needs a token that may write: `hf auth login`, or HF_TOKEN. The weights are checked before
    anything is sent.

    Example: semidetr push runs/mine/best me/mushrooms --dry-run --bundle look
    """
    from huggingface_hub.utils import validate_repo_id

    from semidetr_hf import hub
    from semidetr_hf.hub.bundle import detector_files
    from semidetr_hf.training.hub_push import bundle_detector
    from semidetr_hf.training.run_facts import read_facts
    from semidetr_hf.training.saved_detectors import load_detector

    validate_repo_id(repository)
    detector_files(model)
    load_detector("MODEL", model)
    others = {folder: read_facts(folder) for folder in also}
    for folder, found in others.items():
        if found is None:
            raise FileNotFoundError(f"--also {folder}: no detector in the folder of a run; give best/ of one")
    if bundle is not None and bundle.is_dir() and any(bundle.iterdir()):
        raise FileExistsError(f"--bundle {bundle}: is not empty; give a new folder")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if bundle is None else bundle
        files = bundle_detector(
            model,
            folder,
            repository,
            other_runs=[facts for facts in others.values() if facts is not None],
            examples=example,
            license=license,
        )
        if not dry_run:
            typer.echo(f"uploaded: {hub.push(folder, repository, private=private, message=message)}")
            return
        for path in files:
            typer.echo(f"{path.stat().st_size:>12,} bytes  {path.relative_to(folder).as_posix()}")
        size = sum(path.stat().st_size for path in files)
        typer.echo(f"{size:>12,} bytes in {len(files)} files would go to {repository}")
