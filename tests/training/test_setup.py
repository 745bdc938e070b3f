import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import tiny_model

from semidetr_hf import SemiDetrForObjectDetection
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.validation import check_sources
from semidetr_hf.data.voc import VocSource
from semidetr_hf.ssod.one_to_many import OneToManyAssigner
from semidetr_hf.ssod.one_to_many_variants import ATSSAssigner, MaxIoUAssigner, SimOTAAssigner
from semidetr_hf.structures import Stage
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.setup import (
    build_image_processor,
    build_model,
    build_objective,
    build_schedule,
    open_sources,
)


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


def write_voc(folder: Path, names: list[str]) -> Path:
    """Write a folder as labelImg does: pictures with an XML file each, one box of 30 x 20 pixels."""
    folder.mkdir()
    for name in names:
        Image.new("RGB", (64, 48), (90, 90, 90)).save(folder / f"{name}.png")
        box = "<xmin>5</xmin><ymin>6</ymin><xmax>34</xmax><ymax>25</ymax>"
        (folder / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><size><width>64</width><height>48</height></size>"
            f"<object><name>{'mug' if name == 'a' else 'pen'}</name><bndbox>{box}</bndbox></object></annotation>"
        )
    return folder


def test_xml_files_are_labeled_images_too(labels: Path, tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", ["a", "b", "c"])
    data = {"labeled": str(folder), "val": str(folder), "label_fraction": 0.4}
    sources = open_sources(configure(labels, data=data))
    assert isinstance(sources.labeled, VocSource)
    assert isinstance(sources.val, VocSource)
    assert sources.unlabeled is not None
    # 0.4 of 3 images, rounded down.
    assert (len(sources.labeled), len(sources.unlabeled), len(sources.val)) == (1, 2, 3)
    assert sources.labeled.category_names == sources.val.category_names == ("mug", "pen")


def test_xml_files_to_validate_on_have_the_categories_of_the_labeled_ones(labels: Path, tmp_path: Path) -> None:
    train, val = write_voc(tmp_path / "train", ["a", "b"]), write_voc(tmp_path / "val", ["b", "c"])
    sources = open_sources(configure(labels, data={"labeled": str(train), "val": str(val)}))
    assert sources.val is not None
    # The mug is only on the labeled image a; alone, pen would be label 0 of id 1.
    assert sources.val.category_names == sources.labeled.category_names == ("mug", "pen")
    assert sources.val.category_ids == sources.labeled.category_ids == (1, 2)
    assert sources.val[0].class_labels.tolist() == [1]
    assert check_sources(*sources) == []
    with pytest.raises(ValueError, match=r"train.a\.xml: shows 'mug', but the categories to find are pen"):
        open_sources(configure(labels, data={"labeled": str(val), "val": str(train)}))


def test_xml_files_to_validate_on_have_the_ids_of_a_labeled_json(labels: Path, tmp_path: Path) -> None:
    val = write_voc(tmp_path / "val", ["b"])
    (val / "b.xml").write_text((val / "b.xml").read_text().replace("pen", "dog"))
    sources = open_sources(configure(labels, data={"val": str(val)}))
    assert sources.val is not None
    assert (sources.val.category_ids, sources.val.category_names) == ((3, 7), ("cat", "dog"))


def test_a_json_to_validate_on_keeps_its_own_categories(labels: Path, tmp_path: Path) -> None:
    train = write_voc(tmp_path / "train", ["a", "b"])
    sources = open_sources(configure(labels, data={"labeled": str(train), "val": str(labels)}))
    assert sources.val is not None and sources.val.category_names == ("cat", "dog")
    with pytest.raises(ValueError, match="if the labeled images have XML files, into the validation json"):
        check_sources(*sources)


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        # Written as 5, 6, 34, 25 into a folder that is not VOC's.
        ("auto", [5, 6, 34, 25]),
        ("written", [5, 6, 34, 25]),
        ("exact", [4, 5, 34, 25]),
        ("released", [4, 5, 33, 24]),
    ],
)
def test_corners_of_voc_boxes_are_chosen(labels: Path, tmp_path: Path, corners: str, box: list[int]) -> None:
    folder = str(write_voc(tmp_path / "voc", ["a"]))
    sources = open_sources(configure(labels, data={"labeled": folder, "val": folder, "voc_corners": corners}))
    assert sources.val is not None
    assert sources.labeled[0].boxes_xyxy.tolist() == sources.val[0].boxes_xyxy.tolist() == [box]
    assert open_sources(configure(labels, data={"voc_corners": corners})).labeled[0].boxes_xyxy.tolist() == [
        [9, 9, 39, 39]
    ]


def test_a_share_of_the_labeled_images_can_be_held_out_to_evaluate_on(labels: Path) -> None:
    sources = open_sources(configure(labels, data={"val_fraction": 0.2}))
    assert sources.val is not None
    assert (len(sources.labeled), len(sources.val)) == (8, 2)
    assert {*sources.labeled.image_ids} | {*sources.val.image_ids} == {*range(1, 11)}
    again = open_sources(configure(labels, data={"val_fraction": 0.2}))
    assert again.val is not None
    assert again.val.image_ids == sources.val.image_ids
    other = open_sources(configure(labels, data={"val_fraction": 0.2, "fold": 3}))
    assert other.val is not None
    assert other.val.image_ids != sources.val.image_ids


def test_images_that_are_held_out_are_neither_labeled_nor_unlabeled_ones(labels: Path) -> None:
    labeled, unlabeled, val = open_sources(configure(labels, data={"val_fraction": 0.5, "label_fraction": 0.6}))
    assert unlabeled is not None
    assert val is not None
    assert [len(labeled), len(unlabeled), len(val)] == [3, 4, 3]
    assert len({*labeled.image_ids, *unlabeled.image_ids, *val.image_ids}) == 10


def test_a_share_that_leaves_nothing_to_train_on_is_refused(labels: Path) -> None:
    with pytest.raises(ValueError, match=r"val_fraction=0\.5: of 1 labeled images it leaves none .* to train on"):
        open_sources(configure(labels, data={"val_fraction": 0.5, "label_fraction": 0.1}))
    with pytest.raises(ValueError, match=r"val_fraction=0\.5 contradicts val='val\.json'"):
        configure(labels, data={"val_fraction": 0.5, "val": "val.json"})


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


def test_the_model_learns_as_the_configuration_says(labels: Path, tmp_path: Path) -> None:
    chosen = {
        "bbox_loss_coefficient": 10.0,
        "class_agnostic_encoder_loss": True,
        "class_loss_normalizer": "process",
        "denoise_empty_images": False,
        "matcher_eps": 1e-12,
    }
    config = configure(labels, matching=chosen)
    source = open_sources(config).labeled
    reference, paper = build_model(config, source), build_model(configure(labels), source)
    assert {name: getattr(reference.config, name) for name in chosen} == chosen
    defaults = {name: getattr(configure(labels).matching, name) for name in chosen}
    assert {name: getattr(paper.config, name) for name in chosen} == defaults
    # Also when everything else comes from a detector that learned in the other way.
    paper.save_pretrained(tmp_path / "saved")
    going_on = build_model(configure(labels, matching=chosen, model={"init_from": str(tmp_path / "saved")}), source)
    assert {name: getattr(going_on.config, name) for name in chosen} == chosen


def test_a_label_table_that_is_too_short_is_made_anew(labels: Path, tmp_path: Path) -> None:
    source = open_sources(configure(labels)).labeled
    one = SemiDetrForObjectDetection(
        type(build_model(configure(labels), source).config).nano(num_labels=1, label_embedding_rows=1)
    )
    one.save_pretrained(tmp_path / "saved")
    config = configure(labels, model={"init_from": str(tmp_path / "saved")})
    model = build_model(config, source)
    assert model.config.label_embedding_rows is None
    assert model.label_embedding.num_embeddings == 2
    torch.testing.assert_close(model.model.encoder.state_dict(), one.model.encoder.state_dict())


def test_a_detector_is_never_random_in_part(labels: Path, tmp_path: Path) -> None:
    source = open_sources(configure(labels)).labeled
    build_model(configure(labels), source).save_pretrained(tmp_path / "saved")
    config = configure(labels, model={"init_from": str(tmp_path / "saved")})
    path = tmp_path / "saved" / "config.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"d_model": 64}))
    with pytest.raises(ValueError, match=r"init_from=.* the weights do not fit the config\.json beside them"):
        build_model(config, source)
    path.write_text(json.dumps(json.loads(whole) | {"decoder_layers": 3}))
    with pytest.raises(ValueError, match=r"or are not there: model\.decoder\.layers\.2\."):
        build_model(config, source)
    path.write_text(whole)
    build_model(config, source)


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


# ---- build_schedule and build_objective


def test_the_schedule_is_that_of_the_configuration(labels: Path) -> None:
    config = configure(
        labels,
        schedule={"num_steps": 10, "burn_in_steps": 2, "one_to_many_steps": 4, "unsupervised_weight": 3.0},
        pseudo_labels={"denoise_pseudo_labels": "always"},
        consistency={"consistency_weight": 2.0, "scale_consistency": True, "consistency_stages": "one_to_many"},
    )
    schedule = build_schedule(config)
    first, second = Stage.ONE_TO_MANY, Stage.ONE_TO_ONE
    assert [schedule.stage_at(step) for step in (0, 3, 4, 9)] == [first, first, second, second]
    assert [schedule.uses_unlabeled(step) for step in (1, 2)] == [False, True]
    # 2 x 3 in the first stage alone.
    weights = [schedule.loss_weights(stage) for stage in (first, second)]
    assert [(w.pseudo, w.consistency, w.denoises_pseudo_labels) for w in weights] == [(3, 6, True), (3, 0, True)]


@pytest.mark.parametrize(
    ("has_unlabeled", "weight", "width"), [(True, 1.0, 96), (False, 1.0, None), (True, 0.0, None), (False, 0.0, None)]
)
def test_there_is_a_projector_where_there_is_a_consistency_loss(
    labels: Path, has_unlabeled: bool, weight: float, width: int | None
) -> None:
    config = configure(labels, consistency={"consistency_weight": weight, "projector_width": 96})
    objective = build_objective(config, tiny_model(), has_unlabeled=has_unlabeled, boxes_per_image=[1.0] * 4)
    found = None if objective.projector is None else objective.projector.fc1.out_features
    assert found == width


@pytest.mark.parametrize("asked", [False, True])
def test_layers_are_computed_again_in_the_backward_pass_if_asked_for(labels: Path, asked: bool) -> None:
    config = configure(labels, run={"output_dir": "out", "gradient_checkpointing": asked})
    student = tiny_model()
    build_objective(config, student, has_unlabeled=True, boxes_per_image=[1.0] * 4)
    assert {layer.gradient_checkpointing for layer in student.model.encoder.layers} == {asked}
    assert {layer.gradient_checkpointing for layer in student.model.decoder.layers} == {asked}


def test_weights_of_the_projector_follow_the_seed(labels: Path) -> None:
    first, second, third = (
        build_objective(
            configure(labels, run={"output_dir": "out", "seed": seed}),
            tiny_model(),
            has_unlabeled=True,
            boxes_per_image=[1.0] * 4,
        ).projector
        for seed in (1, 1, 2)
    )
    assert first is not None
    assert second is not None
    assert third is not None
    assert torch.equal(first.fc2.weight, second.fc2.weight)
    assert not torch.equal(first.fc2.weight, third.fc2.weight)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("alignment", OneToManyAssigner),
        ("max_iou", MaxIoUAssigner),
        ("atss", ATSSAssigner),
        ("sim_ota", SimOTAAssigner),
    ],
)
def test_the_rule_of_the_first_stage(labels: Path, name: str, kind: type) -> None:
    matching = {"one_to_many_assigner": name, "one_to_many_top_k": 5, "alignment_alpha": 0.5, "alignment_beta": 4.0}
    config = configure(labels, matching=matching | {"task_aligned_gamma": 1.5})
    student = tiny_model()
    criterion = build_objective(config, student, has_unlabeled=True, boxes_per_image=[1.0] * 4).one_to_many
    assert type(criterion.assigner) is kind
    assert (criterion.assigner.alpha, criterion.assigner.beta, criterion.gamma) == (0.5, 4.0, 1.5)
    if name == "alignment":
        assert criterion.assigner.top_k == 5


def test_the_rules_of_pseudo_labels_and_consistency_reach_the_objective(labels: Path) -> None:
    pseudo_labels = {
        "score_threshold": 0.3,
        "confident_source": "candidates",
        "mean_std_filter": False,
        "nms_iou": 0.5,
        "min_score": 0.02,
        "max_detections": 7,
        "min_box_size": None,
        "mixing": "both",
    }
    consistency = {
        "candidate_filter": "top_k",
        "cost_threshold": "densest",
        "candidate_top_k": 3,
        "consistency_source": "teacher",
        "consistency_copies": 5,
        "consistency_rows": "all",
        "consistency_unit_length": True,
    }
    config = configure(labels, pseudo_labels=pseudo_labels, consistency=consistency)
    objective = build_objective(config, tiny_model(), has_unlabeled=True, boxes_per_image=[1.0] * 4)
    assert vars(objective.pseudo_labels) == pseudo_labels
    assert list(vars(objective.consistency).values()) == list(consistency.values())


def test_adaptive_thresholds_have_the_rates_of_the_labels(labels: Path) -> None:
    rules = {"class_thresholds": "adaptive", "class_share": 0.5, "lowest_threshold": 0.1}
    config = configure(labels, pseudo_labels=rules)
    rates = [4.0, 1.0, 0.5, 2.0]
    objective = build_objective(config, tiny_model(), has_unlabeled=True, boxes_per_image=rates)
    assert objective.class_thresholds is not None
    assert objective.class_thresholds.boxes_per_image.tolist() == [2.0, 0.5, 0.25, 1.0]
    assert objective.class_thresholds.lowest == 0.1
    supervised = build_objective(config, tiny_model(), has_unlabeled=False, boxes_per_image=rates)
    assert supervised.class_thresholds is None
