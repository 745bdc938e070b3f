"""A saved detector that Inference Endpoints serve as it is: `handler.py` and what it needs, beside the weights."""

from pathlib import Path

HANDLER = Path(__file__).with_name("handler.py")
# What the code of a saved detector imports, as this package requires it; torch is part of every endpoint.
REQUIREMENTS = ("transformers>=5.13,<6", "timm>=1.0.20", "scipy>=1.11", "torchvision>=0.23")


def write_handler(folder: str | Path) -> list[Path]:
    """Write `handler.py` and its `requirements.txt` into the folder of a saved detector.

    Args:
        folder: of the detector; files of these names are replaced.

    Returns:
        The two files.

    Raises:
        FileNotFoundError: if there is no config.json in the folder.
        OSError: if a file cannot be written.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no folder with the config.json of a saved detector")
    contents = {
        "handler.py": HANDLER.read_text(encoding="utf-8"),
        "requirements.txt": "".join(f"{requirement}\n" for requirement in REQUIREMENTS),
    }
    for name, text in contents.items():
        partial = folder / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / name)
    return [folder / name for name in contents]
