"""The model card: its metadata survives the library's own reading and validation, its text tells what is known."""

from dataclasses import replace
from pathlib import Path

import pytest
from hub.hub_server import Hub
from huggingface_hub import ModelCard, constants

from semidetr_hf.hub import TrainingFacts
from semidetr_hf.hub.card import build_card


def test_the_card_passes_the_validation_of_the_library(hub: Hub, detector_folder: Path, facts: TrainingFacts) -> None:
    card = build_card(detector_folder, "me/detector", facts=facts, examples=["examples/a.png"])
    card.validate()
    build_card(detector_folder, "me/detector", facts=None).validate()
    assert hub.requests.count("POST /api/validate-yaml") == 2
    card.data.license = 3
    with pytest.raises(ValueError, match="license must be text"):
        card.validate()


def test_the_metadata_comes_back_from_the_text(detector_folder: Path, facts: TrainingFacts) -> None:
    facts = replace(facts, data_id="me/scenes")
    text = str(build_card(detector_folder, "me/detector", facts=facts, examples=["examples/a.png"], license="mit"))
    data = ModelCard(text).data  # with the errors of the library, which are none
    assert (data.pipeline_tag, data.library_name, data.license) == ("object-detection", "transformers", "mit")
    assert (data.base_model, data.datasets, data.model_name) == ("me/base", ["me/scenes"], "detector")
    assert {"semi-supervised-learning", "arxiv:2307.08095"} <= set(data.tags)
    assert data.widget == [
        {"src": f"{constants.ENDPOINT}/me/detector/resolve/main/examples/a.png", "example_title": "a"}
    ]
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "map": 0.3523,
        "map_50": 0.6,
        "map_75": 0.4,
    }
    assert results["map"].metric_name == "AP (teacher, seed 7)"
    assert results["map"].metric_args == {"network": "teacher", "seed": 7, "step": 20}
    assert results["map"].dataset_args == {"label_fraction": 0.1, "fold": 2}
    assert (results["map"].task_type, results["map"].dataset_name) == ("object-detection", "val.json")


def test_results_of_other_fractions_and_seeds_stand_beside(detector_folder: Path, facts: TrainingFacts) -> None:
    others = [replace(facts, seed=8), replace(facts, label_fraction=None)]
    card = build_card(detector_folder, "me/detector", facts=facts, other_runs=others)
    found = [
        (result.dataset_config, result.metric_args["seed"])
        for result in ModelCard(str(card)).data.eval_results
        if result.metric_type == "map"
    ]
    assert found == [("labels: 10%, fold 2", 7), ("labels: 10%, fold 2", 8), ("labels: all", 7)]
    rows = [line for line in card.text.splitlines() if line.startswith("|") and "**teacher**" in line]
    assert [row.split("|")[1:3] for row in rows] == [
        [" 10 %, fold 2 ", " 7 "],
        [" 10 %, fold 2 ", " 8 "],
        [" all ", " 7 "],
    ]


def test_the_text_tells_how_it_was_trained(detector_folder: Path, facts: TrainingFacts) -> None:
    text = build_card(detector_folder, "me/detector", facts=facts, curves="curves.png").text
    for part in (
        "20 labeled and 200 unlabeled images",
        "The weights are those of the teacher",
        "| 10 %, fold 2 | 7 | supervised | 0.300 |",
        "| 10 %, fold 2 | 7 | **teacher** | 0.352 |",
        "on val.json (30 images)",
        "1,100, in 16.7 minutes",
        "semidetr train --labeled train.json",
        "](curves.png)",
        "what it overlooks or confuses systematically",
        'model="me/detector", trust_remote_code=True',
    ):
        assert part in text
    assert "removes boxes" not in text
    assert "{" not in text.split("```bibtex")[0]


def test_a_supervised_network_is_not_told_to_have_seen_unlabeled_images(
    detector_folder: Path, facts: TrainingFacts
) -> None:
    text = build_card(detector_folder, "me/detector", facts=replace(facts, network="supervised")).text
    assert "The weights are those of the supervised baseline" in text
    assert "20 labeled images" in text
    assert "overlooks" not in text


def test_what_is_not_known_is_not_told(detector_folder: Path, tmp_path: Path, facts: TrainingFacts) -> None:
    text = build_card(detector_folder, "me/detector", facts=None).text
    assert "## Training" not in text
    assert "## Results" not in text
    unevaluated = TrainingFacts(network="teacher", data="x", steps=5, command="semidetr train")
    card = build_card(detector_folder, "me/detector", facts=unevaluated)
    assert "It was not evaluated." in card.text
    assert "Images: not recorded" in card.text
    assert card.data.eval_results is None
    (tmp_path / "config.json").write_text('{"id2label": {"0": "cat"}, "backbone_config": {"backbone": "resnet18"}}')
    (tmp_path / "preprocessor_config.json").write_text('{"nms_iou": 0.6}')
    text = build_card(tmp_path, "me/detector", facts=None).text
    assert "backbone `resnet18`) for 1 class:\ncat." in text
    assert "overlap by more than\n0.6 (IoU)" in text
