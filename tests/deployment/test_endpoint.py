"""What the endpoint's handler answers, in a process without this package, beside what the pipeline gives."""

import base64
import io
import json
import pickle
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clean_process import run_without_package
from PIL import Image
from tiny import tiny_model
from transformers import pipeline

from semidetr_hf import SemiDetrImageProcessor
from semidetr_hf.deployment.endpoint import HANDLER, REQUIREMENTS, write_handler

# As the server of an endpoint does: the file beside the weights is loaded, and gets the folder.
ANSWER = """
import importlib.util, json, pickle, sys
from pathlib import Path

folder, requests, answers = map(Path, sys.argv[1:])
spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(str(folder))
assert type(handler.detector.model).__module__.startswith("transformers_modules.")
answers.write_text(json.dumps({name: handler(data) for name, data in pickle.loads(requests.read_bytes()).items()}))
"""


def picture(size: tuple[int, int] = (60, 40), mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def file_of(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **({"format": "PNG"} | options))
    return file.getvalue()


def text_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


WIDE, HIGH = picture(), picture((30, 90), seed=1)
TURNED = Image.Exif()
TURNED[0x0112] = 6
PNG = text_of(file_of(WIDE))
ALL = {"threshold": 0.0}

# Name -> the request, and the pictures that it asks about: one, or a list.
ANSWERED: dict[str, tuple[dict[str, Any], Any]] = {
    "base64": ({"inputs": PNG, "parameters": ALL}, WIDE),
    "base64 in lines": (
        {"inputs": "\n".join(PNG[i : i + 76] for i in range(0, len(PNG), 76)), "parameters": ALL},
        WIDE,
    ),
    "data url": ({"inputs": f"data:image/png;base64,{PNG}", "parameters": ALL}, WIDE),
    "binary, opened by the server": ({"inputs": WIDE, "parameters": ALL}, WIDE),
    "bytes": ({"inputs": file_of(WIDE), "parameters": ALL}, WIDE),
    "batch": ({"inputs": [PNG, text_of(file_of(HIGH))], "parameters": ALL}, [WIDE, HIGH]),
    "batch of one": ({"inputs": [PNG], "parameters": ALL}, [WIDE]),
    "palette": ({"inputs": text_of(file_of(WIDE.convert("P"))), "parameters": ALL}, WIDE.convert("P").convert("RGB")),
    "turned by its camera": (
        {"inputs": file_of(WIDE, exif=TURNED), "parameters": ALL},
        WIDE.transpose(Image.Transpose.ROTATE_270),
    ),
    "no parameters": ({"inputs": PNG}, WIDE),
    "parameters are null": ({"inputs": PNG, "parameters": None}, WIDE),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "no inputs"),
    "no object": ([PNG], "no inputs"),
    "unknown part": ({"inputs": PNG, "image": PNG}, "image is no part of a request"),
    "empty batch": ({"inputs": []}, "inputs is an empty list"),
    "large batch": ({"inputs": [PNG] * 33}, "33 pictures; send at most 32"),
    "bad base64": ({"inputs": "no*base64"}, "inputs is not base64"),
    "address": ({"inputs": "https://example.com/1.png"}, "is an address"),
    "not text": ({"inputs": 7}, "inputs is no picture but 7"),
    "no picture": ({"inputs": text_of(b"no picture")}, "inputs is not a readable picture"),
    "torn picture": ({"inputs": file_of(picture((300, 300)))[:5000]}, "inputs is not a readable picture"),
    "second of the batch": ({"inputs": [PNG, ""]}, "inputs[1] is not a readable picture"),
    "too large": ({"inputs": file_of(Image.new("1", (10_000, 5_001)))}, "10000x5001 pixels"),
    "far too large": ({"inputs": file_of(Image.new("1", (20_000, 20_000)))}, "too many pixels"),
    "16 bits": ({"inputs": file_of(Image.new("I;16", (9, 9)))}, "8 bits per channel"),
    "unknown parameter": ({"inputs": PNG, "parameters": {"top_k": 3}}, "top_k is an unknown parameter"),
    "parameters of another kind": ({"inputs": PNG, "parameters": [0.3]}, "parameters is no object but [0.3]"),
    "threshold above 1": ({"inputs": PNG, "parameters": {"threshold": 1.5}}, "threshold is 1.5"),
    "threshold no number": ({"inputs": PNG, "parameters": {"threshold": "high"}}, "threshold is 'high'"),
    "threshold nan": ({"inputs": PNG, "parameters": {"threshold": float("nan")}}, "threshold is nan"),
    "threshold yes": ({"inputs": PNG, "parameters": {"threshold": True}}, "threshold is True"),
    "threshold null": ({"inputs": PNG, "parameters": {"threshold": None}}, "threshold is None"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    tiny_model().save_pretrained(folder)
    SemiDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    assert write_handler(folder) == [folder / "handler.py", folder / "requirements.txt"]
    return folder


@pytest.fixture(scope="module")
def detector(folder: Path) -> Any:
    return pipeline("object-detection", model=str(folder), device="cpu")


@pytest.fixture(scope="module")
def middle(detector: Any) -> float:
    """A threshold that some detections reach and others do not."""
    scores = [found["score"] for found in detector(WIDE, threshold=0.0)]
    return (scores[4] + scores[5]) / 2


@pytest.fixture(scope="module")
def answers(folder: Path, middle: float, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers to all requests, each with whatever came before it."""
    work = tmp_path_factory.mktemp("endpoint")
    requests = {name: data for name, (data, _) in (REFUSED | ANSWERED).items()}
    for name, value in {"threshold": middle, "threshold in the address": str(middle), "threshold 1": 1}.items():
        requests[name] = {"inputs": PNG, "parameters": {"threshold": value}}
    (work / "requests").write_bytes(pickle.dumps(requests))
    finished = run_without_package(ANSWER, folder, work / "requests", work / "answers", folder=work)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads((work / "answers").read_text())


@pytest.mark.parametrize("name", ANSWERED)
def test_answers_are_those_of_the_pipeline(answers: dict[str, Any], detector: Any, name: str) -> None:
    data, pictures = ANSWERED[name]
    options = data.get("parameters") or {}
    expected = (
        [detector(each, **options) for each in pictures]
        if isinstance(pictures, list)
        else detector(pictures, **options)
    )
    assert answers[name] == expected
    if options:
        assert len(expected if isinstance(expected[0], dict) else expected[0]) > 5


def test_the_threshold_counts_detections_above_it(answers: dict[str, Any], detector: Any, middle: float) -> None:
    assert len(answers["threshold"]) == 5
    assert answers["threshold"] == answers["threshold in the address"] == detector(WIDE, threshold=middle)
    assert answers["threshold 1"] == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_an_error_in_json(answers: dict[str, Any], name: str) -> None:
    answer = answers[name]
    assert answer.keys() == {"error"}
    assert REFUSED[name][1] in answer["error"]
    assert "\n" not in answer["error"] and len(answer["error"]) < 200


def test_the_file_imports_nothing_of_ours(folder: Path) -> None:
    assert (folder / "handler.py").read_bytes() == HANDLER.read_bytes()
    assert "semidetr_hf" not in HANDLER.read_text()


def test_requirements_are_those_of_the_package(folder: Path) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(REQUIREMENTS) <= set(project["dependencies"])
    assert (folder / "requirements.txt").read_text().splitlines() == list(REQUIREMENTS)


def test_a_folder_without_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder with the config.json"):
        write_handler(tmp_path)
    assert list(tmp_path.iterdir()) == []
