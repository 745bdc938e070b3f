"""A Space of the Hub for a detector: a folder whose `app.py` serves the demo page."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import requires
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData
from packaging.requirements import Requirement
from PIL import Image

GRADIO_VERSION = "6.31.0"  # the Space installs it; the page was tested with it
DISTRIBUTION = "semidetr-hf"
PACKAGE = Path(__file__).resolve().parents[1]

APP = '''"""A page to try a detector on pictures of one's own."""

from pathlib import Path

from semidetr_hf.demo_page.opening import open_page
from semidetr_hf.demo_page.page import serve

MODEL = {model!r}
EXAMPLES = Path(__file__).parent / "examples"

serve(open_page(MODEL, EXAMPLES if EXAMPLES.is_dir() else None))
'''
README = """---
{card_data}
---

# {title}

Try the detector on pictures of your own: boxes, a table and json, with a threshold, a switch against duplicates and a
choice of classes. To run the page on a machine with Python: `pip install -r requirements.txt gradio`, then
`python app.py`.
"""


def write_space(
    folder: str | Path, model: str, *, title: str | None = None, examples: Sequence[Image.Image] = ()
) -> Path:
    """Write the folder of a Space: `app.py`, `requirements.txt`, `README.md`, the package, and examples if given.

    The package goes along as source, so that the Space does not depend on where else it can be had.

    Args:
        folder: to write; must not exist or be empty.
        model: the detector's id on the Hub, or a folder that the machine of the page has.
        title: of the Space; None for one that names the model.
        examples: pictures to begin with, RGB.

    Returns:
        The folder.

    Raises:
        FileExistsError: if there is something in the folder.
        OSError: if it cannot be written; names it.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: is not empty; give a folder that does not exist yet")
    unfinished = folder.with_name(f".{folder.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _write(unfinished, model, title or f"Detections of {model.rpartition('/')[2]}", examples)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{folder}: cannot be written ({error.strerror or error}); make room or give another") from error
    return folder


def _write(folder: Path, model: str, title: str, examples: Sequence[Image.Image]) -> None:
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "app.py").write_text(APP.format(model=model), encoding="utf-8")
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in _requirements()), encoding="utf-8")
    card = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license="apache-2.0",
        models=None if Path(model).exists() else [model],
        tags=["object-detection", "semi-supervised-learning"],
    )
    SpaceCard(README.format(card_data=card.to_yaml(), title=title)).save(folder / "README.md")
    if examples:
        (folder / "examples").mkdir()
    for number, example in enumerate(examples):
        example.save(folder / "examples" / f"{number:02}.png")


def _requirements() -> Iterator[str]:
    """Yield what the page needs beside gradio, which a Space installs by itself."""
    for line in requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": "train"}):
            yield f"{requirement.name}{requirement.specifier}"
