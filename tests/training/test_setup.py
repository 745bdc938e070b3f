import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from semidetr_hf import SemiDetrForObjectDetection
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.setup import build_image_processor, build_model, open_sources, parse_config, read_yaml


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A COCO json with ten pictures of one box each; the categories have the ids 7 and 3."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(1, 11)]
    for image in images:
        Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / str(image["file_name"]))
    boxes = [{"id": i, "image_id": i, "category_id": (3, 7)[i % 2], "bbox": [9, 9, 30, 30]} for i in range(1, 11)]
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return path


def configure(labels: Path, **parts: dict[str, Any]) -> TrainingConfig:
    values: dict[str, dict[str, Any]] = {
        "data": {"labeled": str(labels)},
        "model": {"size": "nano", "backbone_weights": "random"},
        "run": {"output_dir": "out"},
    }
    return TrainingConfig.from_dict({name: values.get(name, {}) | parts.get(name, {}) for name in values | parts})


# ---- parse_config


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "data: {labeled: a.json, fold: 3}\nschedule: {num_steps: 50, burn_in_steps: 7}\n"
    )
    flags = ["--config", str(tmp_path / "run.yaml"), "--output_dir", "out", "--num_steps", "60"]
    config = parse_config([*flags, "--short_edges", "64", "96", "--no_mean_std_filter", "--cpu"])
    assert (config.data.labeled, config.data.fold, config.run.output_dir) == ("a.json", 3, "out")
    assert (config.schedule.num_steps, config.schedule.burn_in_steps) == (60, 7)
    assert config.data.short_edges == [64, 96]
    assert (config.pseudo_labels.mean_std_filter, config.run.cpu) == (False, True)
    # Neither in the file nor a flag: the defaults.
    assert (
        config.optimizer
        == TrainingConfig.from_dict({"data": {"labeled": "a.json"}, "run": {"output_dir": "out"}}).optimizer
    )


def test_a_written_configuration_is_read_back_unchanged(labels: Path, tmp_path: Path) -> None:
    config = configure(labels, optimizer={"lr_schedule": "step", "lr_drop_steps": [5, 9]}, data={"val": "val.json"})
    config.save(tmp_path / "config.yaml")
    assert parse_config(["--config", str(tmp_path / "config.yaml")]) == config


def test_help_shows_every_field_with_its_default(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--ema_momentum" in text
    assert "(default: 0.999)" in text


def test_an_empty_section_is_one_with_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {labeled: a.json}\nrun: {output_dir: out}\nschedule:\n")
    assert read_yaml(tmp_path / "run.yaml")["schedule"] is None
    assert parse_config(["--config", str(tmp_path / "run.yaml")]).schedule.num_steps == 120_000


# ---- open_sources


def test_a_labeled_share_leaves_the_rest_unlabeled(labels: Path) -> None:
    sources = open_sources(configure(labels, data={"label_fraction": 0.3, "fold": 2}))
    assert sources.unlabeled is not None
    assert (len(sources.labeled), len(sources.unlabeled)) == (3, 7)
    assert sorted([*sources.labeled.image_ids, *sources.unlabeled.image_ids]) == list(range(1, 11))
    again = open_sources(configure(labels, data={"label_fraction": 0.3, "fold": 2}))
    other = open_sources(configure(labels, data={"label_fraction": 0.3, "fold": 4}))
    assert sources.labeled.image_ids == again.labeled.image_ids != other.labeled.image_ids


def test_supervised_and_with_a_folder_and_with_a_json(labels: Path) -> None:
    alone = open_sources(configure(labels))
    assert (len(alone.labeled), alone.unlabeled, alone.val) == (10, None, None)
    folder = open_sources(configure(labels, data={"unlabeled": str(labels.parent), "val": str(labels)}))
    assert isinstance(folder.unlabeled, FolderSource)
    assert folder.val is not None
    assert len(folder.val) == 10
    file = open_sources(configure(labels, data={"unlabeled": str(labels)}))
    assert file.unlabeled is not None
    # The boxes of an unlabeled json are not read.
    assert (len(file.unlabeled), file.unlabeled.num_boxes) == (10, 0)


# ---- build_model and build_image_processor


def test_the_model_knows_names_and_original_ids(labels: Path) -> None:
    config = configure(labels)
    model = build_model(config, open_sources(config).labeled)
    # Labels follow ascending category ids: 3 cat, 7 dog.
    assert model.config.id2label == {0: "cat", 1: "dog"}
    assert model.config.label2id == {"cat": 0, "dog": 1}
    assert model.config.category_ids == [3, 7]
    assert model.class_head.out_features == 2


def test_random_weights_follow_the_seed(labels: Path) -> None:
    source = open_sources(configure(labels)).labeled
    first, second, third = (
        build_model(configure(labels, run={"output_dir": "out", "seed": seed}), source).class_head.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("backbone", ["test_resnet", "convnext_atto"])
def test_another_backbone_gives_strides_of_8_16_and_32(labels: Path, backbone: str) -> None:
    config = configure(labels, model={"size": "nano", "backbone_weights": "random", "backbone": backbone})
    model = build_model(config, open_sources(config).labeled).eval()
    with torch.no_grad():
        shapes = model.encode(torch.zeros(1, 3, 64, 128)).spatial_shapes
    assert shapes == [(8, 16), (4, 8), (2, 4), (1, 2)]


def test_backbone_weights_are_loaded_from_a_file(labels: Path, tmp_path: Path) -> None:
    choice = {"size": "nano", "backbone": "test_resnet", "backbone_weights": "random"}
    config = configure(labels, model=choice)
    source = open_sources(config).labeled
    given = build_model(config, source).model.backbone._backbone.state_dict()
    torch.save(given, tmp_path / "weights.pth")
    config = configure(
        labels, model=choice | {"backbone_weights": str(tmp_path / "weights.pth")}, run={"output_dir": "x", "seed": 5}
    )
    loaded = build_model(config, source).model.backbone._backbone.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in given.items())


def test_starting_from_a_saved_detector(labels: Path, tmp_path: Path) -> None:
    config = configure(labels)
    source = open_sources(config).labeled
    saved = build_model(config, source)
    saved.save_pretrained(tmp_path / "saved")
    going_on = configure(labels, model={"init_from": str(tmp_path / "saved")}, run={"output_dir": "x", "seed": 5})
    same = build_model(going_on, source)
    assert all(torch.equal(same.state_dict()[name], tensor) for name, tensor in saved.state_dict().items())


def test_starting_from_a_detector_of_other_classes(labels: Path, tmp_path: Path) -> None:
    source = open_sources(configure(labels)).labeled
    other = SemiDetrForObjectDetection(type(build_model(configure(labels), source).config).nano(num_labels=5))
    other.save_pretrained(tmp_path / "saved")
    model = build_model(configure(labels, model={"init_from": str(tmp_path / "saved")}), source)
    # The heads are new, everything else is from the folder.
    assert model.class_head.out_features == model.model.proposal_class_head.out_features == 2
    assert model.config.category_ids == [3, 7]
    assert torch.equal(model.model.query_content.weight, other.model.query_content.weight)


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ({"backbone": "resnet1234"}, ValueError, "backbone='resnet1234'"),
        ({"init_from": "nowhere"}, FileNotFoundError, "init_from='nowhere'"),
        ({"init_from": "nowhere", "backbone": "resnet18"}, ValueError, "contradicts init_from='nowhere'"),
    ],
)
def test_wrong_choices(labels: Path, choice: dict[str, str], error: type[Exception], message: str) -> None:
    config = configure(labels, model=choice)
    with pytest.raises(error, match=message):
        build_model(config, open_sources(config).labeled)


def test_images_are_evaluated_at_the_size_of_the_largest_view(labels: Path) -> None:
    config = configure(labels, data={"labeled": str(labels), "short_edges": [64, 96, 80], "long_edge": 150})
    processor = build_image_processor(config)
    inputs = processor(images=Image.new("RGB", (100, 50)), return_tensors="pt")
    # 50 -> 96 would make the long edge 192, so it is 150 x 75.
    assert inputs["pixel_values"].shape == (1, 3, 75, 150)
