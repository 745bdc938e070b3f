"""`semidetr push`: a saved detector onto the Hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    model: Annotated[Path, typer.Argument(help="Folder of a saved detector, such as runs/mine/best.")],
    repository: Annotated[str, typer.Argument(help="NAME or OWNER/NAME on the Hub; made if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="If it is made now, make it private.")] = False,
    message: Annotated[str, typer.Option(help="Message of the commit.")] = "Upload detector",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be uploaded.")] = False,
) -> None:
    """Upload a detector to the Hub.

    With it goes the code that loads it, for trust_remote_code=True. Needs a token that may write: `hf auth login`, or
    HF_TOKEN. The weights are checked before anything is sent.

    Example: semidetr push runs/mine/best me/mushrooms --dry-run
    """
    from huggingface_hub.utils import validate_repo_id

    from semidetr_hf import hub
    from semidetr_hf.training.saved_detectors import load_detector

    validate_repo_id(repository)
    files = hub.files_to_push(model)
    load_detector("MODEL", model)
    if not dry_run:
        typer.echo(f"uploaded: {hub.push(model, repository, private=private, message=message)}")
        return
    for path in files:
        typer.echo(f"{path.stat().st_size:>12,} bytes  {path.name}")
    size = sum(path.stat().st_size for path in files)
    typer.echo(f"{size:>12,} bytes in {len(files)} files would go to {repository}")
