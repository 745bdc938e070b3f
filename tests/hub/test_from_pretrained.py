"""What was pushed loads by its name, in a process that has the libraries but not this package."""

import json
from pathlib import Path

import pytest
import torch
from clean_process import run_without_package
from hub.hub_server import Hub
from PIL import Image
from transformers import pipeline

from semidetr_hf.hub import TrainingFacts, push, write_bundle

LOAD = """
import json, sys
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline

name, image, result = sys.argv[1:]
model = AutoModelForObjectDetection.from_pretrained(name, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
for loaded in (model, processor):
    assert type(loaded).__module__.startswith("transformers_modules."), type(loaded)
inputs = processor(Image.open(image), return_tensors="pt")
detect = pipeline("object-detection", model=name, trust_remote_code=True)
with open(result, "w") as file:
    json.dump({"logits": model(**inputs).logits.tolist(), "found": detect(image, threshold=0.0)}, file)
"""


@pytest.mark.slow
def test_a_pushed_detector_gives_the_same_boxes_without_this_package(
    hub: Hub, detector_folder: Path, tmp_path: Path, facts: TrainingFacts, monkeypatch
) -> None:
    push_folder, image, result = tmp_path / "bundle", tmp_path / "image.png", tmp_path / "result.json"
    write_bundle(detector_folder, push_folder, "me/detector", facts=facts)
    push(push_folder, "me/detector")
    Image.effect_noise((70, 50), 80).convert("RGB").save(image)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("HF_TOKEN")  # a public repository needs none
    done = run_without_package(LOAD, "me/detector", image, result, folder=tmp_path, may_connect=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "GET /me/detector/resolve/" in " ".join(hub.requests)
    loaded = json.loads(result.read_text())
    ours = pipeline("object-detection", model=str(detector_folder))
    assert loaded["found"] == ours(str(image), threshold=0.0)
    assert loaded["found"]
    inputs = ours.image_processor(Image.open(image), return_tensors="pt")
    with torch.no_grad():
        expected = ours.model(**inputs).logits
    torch.testing.assert_close(torch.tensor(loaded["logits"]), expected, rtol=0, atol=0)
