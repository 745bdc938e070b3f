"""A saved folder loads with trust_remote_code=True where this package is not installed, and gives the same numbers."""

import json
from pathlib import Path

import pytest
import torch
from clean_process import run_without_package
from PIL import Image
from tiny import tiny_batch, tiny_model
from torch.testing import assert_close
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection, pipeline

import semidetr_hf
from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection, SemiDetrImageProcessor, SemiDetrModel

MODEL_FOLDER = Path(semidetr_hf.__file__).parent / "model"
AUTO_MAP = {
    "AutoConfig": "configuration_semidetr.SemiDetrConfig",
    "AutoModel": "modeling_semidetr.SemiDetrModel",
    "AutoModelForObjectDetection": "modeling_semidetr.SemiDetrForObjectDetection",
}
ISOLATED = """
import sys

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection, pipeline

folder, result, again = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForObjectDetection.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
detector = pipeline("object-detection", model=folder, trust_remote_code=True)
photo = Image.radial_gradient("L").resize((90, 70)).convert("RGB")
found = detector(photo, threshold=0.0)
print("so far nothing is said", file=sys.stderr)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)  # transformers tells which weights it left out
for loaded in (config, model, base, processor, detector.model, detector.image_processor):
    assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
inputs = torch.load(result)
with torch.no_grad():
    outputs = model(inputs["pixel_values"], inputs["pixel_mask"], inputs["labels"])
    hidden = base(inputs["pixel_values"], inputs["pixel_mask"]).last_hidden_state
image = Image.new("L", (50, 40), 200)
inputs_of_photo = processor(photo, return_tensors="pt")
with torch.no_grad():
    [by_hand] = processor.post_process_object_detection(model(**inputs_of_photo), 0.0, [(70, 90)])
model.save_pretrained(again)
processor.save_pretrained(again)
torch.save(
    {
        "logits": outputs.logits,
        "loss": outputs.loss,
        "hidden": hidden,
        "pixels": processor(image, return_tensors="pt")["pixel_values"],
        "found": found,
        "boxes": by_hand["boxes"],
    },
    result,
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(folder)
    SemiDetrImageProcessor(size={"height": 32, "width": 48}).save_pretrained(folder)
    return folder


def python_files(folder):
    return {path.name: path.read_text() for path in folder.glob("*.py")}


def told(stderr: str) -> list[str]:
    """Return what a program said, without the bars of transformers."""
    lines = [line.strip() for line in stderr.replace("\r", "\n").splitlines()]
    return [line for line in lines if line and "it/s]" not in line]


def test_saving_writes_the_code(folder):
    """Every file of the model folder but __init__.py, as it is, and the map of the classes."""
    expected = {name: text for name, text in python_files(MODEL_FOLDER).items() if name != "__init__.py"}
    assert python_files(folder) == expected
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    # A dictionary of backends: with a plain string, pipeline() asks the user for consent.
    processor = json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]
    assert processor == {"AutoImageProcessor": {"torchvision": "image_processing_semidetr.SemiDetrImageProcessor"}}


def test_each_part_saves_its_own_code(tmp_path):
    parts = {
        "base": (tiny_model().model, "modeling_semidetr.py"),
        "config": (tiny_model().config, "configuration_semidetr.py"),
        "processor": (SemiDetrImageProcessor(), "image_processing_semidetr.py"),
    }
    for name, (part, file) in parts.items():
        part.save_pretrained(tmp_path / name)
        assert file in python_files(tmp_path / name)
    assert json.loads((tmp_path / "base" / "config.json").read_text())["auto_map"] == AUTO_MAP


@torch.no_grad()
def test_isolated_process_gives_the_same(folder, tmp_path):
    pixel_values, pixel_mask, labels = tiny_batch()
    result, again = tmp_path / "result.pt", tmp_path / "again"
    torch.save({"pixel_values": pixel_values, "pixel_mask": pixel_mask, "labels": labels}, result)
    finished = run_without_package(ISOLATED, folder, result, again, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert told(finished.stderr)[0] == "so far nothing is said"
    loaded, model = torch.load(result), tiny_model()
    torch.set_num_threads(1)
    expected = model(pixel_values, pixel_mask, labels)
    assert_close(loaded["logits"], expected.logits, rtol=0, atol=0)
    assert_close(loaded["loss"], expected.loss, rtol=0, atol=0)
    assert_close(loaded["hidden"], expected.last_hidden_state, rtol=0, atol=0)
    assert loaded["pixels"].shape == (1, 3, 32, 48)
    photo = Image.radial_gradient("L").resize((90, 70)).convert("RGB")
    # With the package no trust_remote_code is needed.
    assert loaded["found"] == pipeline("object-detection", model=str(folder), device="cpu")(photo, threshold=0.0)
    assert len(loaded["found"]) == 60  # 12 queries x 5 labels, fewer than the 100 best
    processor = AutoImageProcessor.from_pretrained(folder)
    outputs = AutoModelForObjectDetection.from_pretrained(folder)(**processor(photo, return_tensors="pt"))
    [by_hand] = processor.post_process_object_detection(outputs, 0.0, [(70, 90)])
    assert_close(loaded["boxes"], by_hand["boxes"], rtol=0, atol=0)
    # What was loaded as remote code can be saved again, code included.
    assert python_files(again) == python_files(folder)
    assert json.loads((again / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_installed_package_wins_over_remote_code(folder):
    for auto, expected in (
        (AutoConfig, SemiDetrConfig),
        (AutoModel, SemiDetrModel),
        (AutoModelForObjectDetection, SemiDetrForObjectDetection),
        (AutoImageProcessor, SemiDetrImageProcessor),
    ):
        assert type(auto.from_pretrained(folder, trust_remote_code=True)) is expected
