import argparse
import json
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from recorded import FIXTURES, load_recorded
from safetensors.torch import load_file
from timm.models import build_model_with_cfg
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.conversion import (
    convert_checkpoint,
    convert_dino_state_dict,
    convert_projector_state_dict,
    convert_semidetr_state_dict,
    main,
)
from semidetr_hf.conversion_tables import (
    COCO_IDS,
    COCO_NAMES,
    VOC_NAMES,
    labels_of,
    read_categories,
    sizes_of,
    sort_entries,
)
from semidetr_hf.ssod.query_consistency import QueryProjector

BACKBONE = "resnet_for_conversion"


@timm.models.register_model
def resnet_for_conversion(pretrained=False, **kwargs):
    """The network of the recorded detector: stem 64, stages 16/32/64/128, bottleneck blocks 1, 2, 1, 1."""
    kwargs.pop("pretrained_cfg_overlay", None)
    return build_model_with_cfg(
        ResNet, BACKBONE, pretrained, block=Bottleneck, layers=(1, 2, 1, 1), channels=(4, 8, 16, 32), **kwargs
    )


def entries(file: str) -> dict[str, Tensor]:
    """All entries of a published checkpoint, in their shapes, without memory for the values."""
    rows = dict(line.split("\t") for line in Path(FIXTURES / file).read_text().splitlines()[1:])
    shapes = {name: [] if shape == "scalar" else list(map(int, shape.split("x"))) for name, shape in rows.items()}
    return {name: torch.zeros(1).expand(shape) if shape else torch.tensor(0) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    state_dict = entries("dino_4scale_r50_keys.tsv")
    assert len(state_dict) == 626
    return state_dict


@pytest.fixture(scope="module")
def published_semidetr() -> dict[str, Tensor]:
    """Both networks and the projector."""
    rows = entries("semidetr_r50_keys.tsv")
    network = {name: tensor for name, tensor in rows.items() if not name.startswith("projector.")}
    state_dict = {f"{part}.{name}": tensor for part in ("student", "teacher") for name, tensor in network.items()}
    state_dict.update({name: tensor for name, tensor in rows.items() if name.startswith("projector.")})
    assert len(state_dict) == 1283
    return state_dict


def shapes_of_base_model(num_labels: int, rows: int) -> dict[str, tuple[int, ...]]:
    names = [str(i) for i in range(num_labels)]
    config = SemiDetrConfig.base(
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, label_embedding_rows=rows
    )
    with torch.device("meta"):
        model = SemiDetrForObjectDetection(config)
    return shapes(model.state_dict())


def shapes(state_dict: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def test_every_entry_of_a_published_checkpoint_finds_its_place(published: dict[str, Tensor]) -> None:
    assert shapes(convert_dino_state_dict(published)) == shapes_of_base_model(91, 92)


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_every_entry_of_a_published_semidetr_checkpoint_finds_its_place(
    published_semidetr: dict[str, Tensor], network: str
) -> None:
    assert shapes(convert_semidetr_state_dict(published_semidetr, network)) == shapes_of_base_model(80, 82)
    _, report = sort_entries(published_semidetr, "semidetr", f"{network}.")
    # 631 per network: 53 counters of batch norms, 5 copies of 2 tensors of the class and 6 of the box head, the rest.
    assert (len(report.counters), len(report.collapsed), len(report.converted)) == (53, 40, 538)
    assert (len(report.other_network), len(report.projector), report.unmatched) == (631, 21, [])


def test_the_projector_has_the_names_of_ours(published_semidetr: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        ours = QueryProjector(256)
    assert shapes(convert_projector_state_dict(published_semidetr)) == shapes(ours.state_dict())


def test_published_shapes_give_the_sizes_of_the_paper(published: dict[str, Tensor]) -> None:
    base = SemiDetrConfig.base()
    sizes = sizes_of(convert_dino_state_dict(published))
    backbone = sizes.pop("backbone_config")
    assert backbone == {"model_type": "timm_backbone", "backbone": "resnet50", "out_indices": [2, 3, 4]}
    assert sizes == {name: getattr(base, name) for name in sizes}
    assert len(sizes) == 11


def test_values_arrive_unchanged_and_stacked_projections_are_cut() -> None:
    # Rows 0-1 are the query, 2-3 the key, 4-5 the value projection.
    stacked = torch.arange(12.0).view(6, 2)
    converted = convert_dino_state_dict(
        {
            "transformer.decoder.layers.3.self_attn.in_proj_weight": stacked,
            "transformer.decoder.layers.3.self_attn.in_proj_bias": torch.arange(6.0),
            "transformer.decoder.layers.3.norm1.weight": torch.tensor([7.0]),
        }
    )
    prefix = "model.decoder.layers.3"
    assert {name: tensor.tolist() for name, tensor in converted.items()} == {
        f"{prefix}.self_attn.q_proj.weight": [[0, 1], [2, 3]],
        f"{prefix}.self_attn.k_proj.weight": [[4, 5], [6, 7]],
        f"{prefix}.self_attn.v_proj.weight": [[8, 9], [10, 11]],
        f"{prefix}.self_attn.q_proj.bias": [0, 1],
        f"{prefix}.self_attn.k_proj.bias": [2, 3],
        f"{prefix}.self_attn.v_proj.bias": [4, 5],
        # The first norm of a published decoder layer follows the cross-attention.
        f"{prefix}.cross_attn_layer_norm.weight": [7],
    }


def test_equal_copies_of_a_head_become_one() -> None:
    head = torch.tensor([1.0, 2.0])
    names = ["class_embed.0.bias", "class_embed.1.bias", "transformer.decoder.class_embed.0.bias"]
    converted = convert_dino_state_dict({name: head.clone() for name in names})
    assert list(converted) == ["class_head.bias"]
    assert converted["class_head.bias"].tolist() == [1, 2]


def test_heads_that_differ_are_refused() -> None:
    state = {"bbox_embed.0.layers.0.bias": torch.zeros(2), "bbox_embed.4.layers.0.bias": torch.ones(2)}
    with pytest.raises(ValueError, match=re.escape("bbox_embed.4.layers.0.bias differs from its copy")):
        convert_dino_state_dict(state)


def test_a_copy_without_its_original_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("class_embed.3.bias differs from its copy class_embed.0.bias")):
        convert_dino_state_dict({"class_embed.3.bias": torch.zeros(2)})


def test_unknown_entries_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'roi_head.weight'"):
        convert_dino_state_dict({"roi_head.weight": torch.zeros(1)})


def test_nothing_becomes_nothing() -> None:
    assert convert_dino_state_dict({}) == {}


# ---- Files


@pytest.fixture(scope="module")
def recorded() -> dict:
    return load_recorded("dino_tiny.npz")


@pytest.fixture(scope="module")
def dino(recorded: dict) -> dict[str, Tensor]:
    """The recorded weights in the layout of a published file, with the copies of the heads."""
    state_dict = dict(recorded["state_dict"])
    for line in recorded["aliases"].split("\n"):
        name, first = line.split("\t")
        state_dict[name] = state_dict[first]
    return state_dict


def semidetr(dino: dict[str, Tensor], prefix: str, factor: float = 1.0) -> dict[str, Tensor]:
    """The weights times a factor in the layout of one Semi-DETR network."""
    starts = {
        "backbone.0.body.": "backbone.",
        "class_embed.": "bbox_head.fc_cls.",
        "bbox_embed.": "bbox_head.fc_reg.",
        "transformer.enc_out_class_embed.": "bbox_head.fc_enc_cls.",
        "transformer.enc_out_bbox_embed.": "bbox_head.fc_enc_reg.",
        "": "bbox_head.",
    }
    network = {f"{prefix}backbone.bn1.num_batches_tracked": torch.tensor(7)}
    for name, tensor in dino.items():
        if name.startswith(("transformer.decoder.class_embed", "transformer.decoder.bbox_embed")):
            continue
        start = next(start for start in starts if name.startswith(start))
        network[prefix + starts[start] + name.removeprefix(start)] = tensor * factor
    return network


def projector() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {f"projector.{name}": tensor for name, tensor in QueryProjector(64, 16, 3).state_dict().items()}


def semidetr_file(path: Path, dino: dict[str, Tensor], **meta: Any) -> Path:
    """A file as mmcv writes it; the recorded weights are the teacher's, half of them the student's."""
    state_dict = OrderedDict(semidetr(dino, "student.", 0.5) | semidetr(dino, "teacher.") | projector())
    meta = {"mmdet_version": "2.16.0", "CLASSES": tuple("abcdefghijklm"), "iter": 59999, **meta}
    torch.save({"meta": meta, "state_dict": state_dict, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, dino: dict[str, Tensor]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    arguments = argparse.Namespace(lr=1e-4, backbone="resnet50")
    torch.save({"model": dino, "optimizer": {}, "epoch": 11, "args": arguments}, folder / "dino.pth")
    return {"dino": folder / "dino.pth", "semidetr": semidetr_file(folder / "semidetr.pth", dino)}


@torch.no_grad()
def assert_recorded_outputs(model: Any, recorded: dict) -> None:
    inputs, expected = recorded["inputs"], recorded["eval"]
    outputs = model(inputs["pixel_values"], (~inputs["mask"]).long())
    assert_close(outputs.logits, expected["logits"][-1], rtol=1e-4, atol=5e-5)
    assert_close(outputs.pred_boxes, expected["boxes"][-1], rtol=1e-4, atol=5e-6)


def test_a_dino_file_gives_the_recorded_outputs(recorded: dict, files: dict[str, Path]) -> None:
    model, report = convert_checkpoint(files["dino"], backbone=BACKBONE)
    assert_recorded_outputs(model, recorded)
    assert not model.training
    assert (model.config.inverse_sigmoid_eps, model.config.matcher_eps) == (1e-3, 1e-8)
    assert (model.config.num_labels, model.config.label_embedding_rows) == (13, 14)
    assert model.config.id2label[12] == "label_12"
    assert (report.unmatched, report.missing, report.other_parts) == ([], [], ["optimizer", "epoch", "args"])


def test_the_averaged_network_of_a_dino_file_is_its_teacher(tmp_path: Path, dino: dict[str, Tensor]) -> None:
    averaged = {f"module.{name}": tensor * 2 for name, tensor in dino.items()}
    torch.save({"model": dino, "ema_model": averaged}, tmp_path / "ema.pth")
    for network, factor in (("teacher", 2), ("student", 1)):
        model, _ = convert_checkpoint(tmp_path / "ema.pth", network=network, backbone=BACKBONE)
        assert torch.equal(model.class_head.weight, dino["class_embed.0.weight"] * factor)


def test_a_semidetr_file_gives_the_teacher_or_the_student(
    recorded: dict, files: dict[str, Path], dino: dict[str, Tensor]
) -> None:
    teacher, report = convert_checkpoint(files["semidetr"], backbone=BACKBONE)
    assert (teacher.config.inverse_sigmoid_eps, teacher.config.matcher_eps) == (1e-5, 1e-12)
    assert list(teacher.config.id2label.values()) == list("abcdefghijklm")
    teacher.config.inverse_sigmoid_eps = 1e-3  # that of the recorded weights
    assert_recorded_outputs(teacher, recorded)
    assert report.missing == report.unmatched == []
    assert report.other_parts == ["meta", "optimizer"]
    student, _ = convert_checkpoint(files["semidetr"], network="student", backbone=BACKBONE)
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor * 2, teacher.state_dict()[name]), name


def test_a_supervised_semidetr_file_has_one_network_for_both(tmp_path: Path, dino: dict[str, Tensor]) -> None:
    torch.save({"meta": {}, "state_dict": semidetr(dino, "")}, tmp_path / "one.pth")
    for network in ("teacher", "student"):
        model, report = convert_checkpoint(tmp_path / "one.pth", network=network, backbone=BACKBONE)
        assert torch.equal(model.class_head.bias, dino["class_embed.0.bias"])
        assert (report.missing, report.unmatched, report.other_network) == ([], [], [])


def test_a_network_that_is_not_there_is_refused(tmp_path: Path, dino: dict[str, Tensor]) -> None:
    torch.save({"state_dict": semidetr(dino, "student.")}, tmp_path / "student.pth")
    with pytest.raises(ValueError, match="no network 'teacher'; it has student"):
        convert_checkpoint(tmp_path / "student.pth", backbone=BACKBONE)
    with pytest.raises(ValueError, match="network must be one of teacher, student, got 'ema'"):
        convert_checkpoint(tmp_path / "student.pth", network="ema")


@pytest.mark.parametrize("family", ["dino", "semidetr"])
def test_the_report_accounts_for_every_entry_and_lists_unknown_ones(
    tmp_path: Path, files: dict[str, Path], family: str
) -> None:
    content = torch.load(files[family], weights_only=False)
    prefix, part = {"dino": ("", "model"), "semidetr": ("teacher.bbox_head.", "state_dict")}[family]
    planted = [
        "roi_head.weight",
        "projector.extra.weight",
        f"{prefix}transformer.encoder.layers.0.norm9.weight",
        f"{prefix}transformer.encoder.layers.0.self_attn.gate.weight",
    ]
    content[part] = {**content[part], **{name: torch.zeros(2) for name in planted}}
    torch.save(content, tmp_path / "planted.pth")
    model, report = convert_checkpoint(tmp_path / "planted.pth", backbone=BACKBONE)
    assert report.unmatched == planted
    assert all(name in "\n".join(report.lines()) for name in planted)
    groups = [report.converted, report.collapsed, report.unmatched, report.counters, report.projector]
    places = [name for group in [*groups, report.other_network] for name in group]
    assert sorted(places) == sorted(content[part])
    filled = [name for names in report.converted.values() for name in names]
    assert sorted(filled) == sorted(model.state_dict())


def test_missing_tensors_are_named_or_stay_random(tmp_path: Path, dino: dict[str, Tensor]) -> None:
    gone = "transformer.decoder.layers.1.self_attn.in_proj_bias"
    torch.save({"model": {k: v for k, v in dino.items() if k != gone}}, tmp_path / "gap.pth")
    wanted = "lacks 3 of .* tensors: model.decoder.layers.1.self_attn.q_proj.bias, .*allow_missing"
    with pytest.raises(ValueError, match=wanted):
        convert_checkpoint(tmp_path / "gap.pth", backbone=BACKBONE)
    _, report = convert_checkpoint(tmp_path / "gap.pth", backbone=BACKBONE, allow_missing=True)
    assert sorted(report.missing) == [f"model.decoder.layers.1.self_attn.{part}_proj.bias" for part in "kqv"]


def test_what_tells_a_size_cannot_be_missing(tmp_path: Path, dino: dict[str, Tensor]) -> None:
    torch.save({"model": {k: v for k, v in dino.items() if "tgt_embed" not in k}}, tmp_path / "gap.pth")
    with pytest.raises(ValueError, match="nothing that becomes model.query_content.weight"):
        convert_checkpoint(tmp_path / "gap.pth", backbone=BACKBONE, allow_missing=True)


def test_other_backbones_and_sizes_are_refused(
    tmp_path: Path, files: dict[str, Path], dino: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=re.escape("no ResNet has blocks (1, 2, 1, 1)")):
        convert_checkpoint(files["dino"])
    with pytest.raises(ValueError, match="of another shape, first .* in the file"):
        convert_checkpoint(files["dino"], backbone="resnet18")
    shrunk = {k: v[:30] if "attention_weights" in k else v for k, v in dino.items()}
    torch.save({"model": shrunk}, tmp_path / "points.pth")
    with pytest.raises(ValueError, match="30 attention weights of the encoder are not heads x 4 levels x 4 points"):
        convert_checkpoint(tmp_path / "points.pth", backbone=BACKBONE)


# ---- Classes


def with_91_rows(dino: dict[str, Tensor]) -> dict[str, Tensor]:
    """The recorded weights with class rows that hold their own number, as in a file trained on COCO."""
    state_dict = dict(dino)
    for name, tensor in dino.items():
        if "class_embed" in name:
            state_dict[name] = torch.arange(91.0).view(-1, *[1] * (tensor.dim() - 1)).expand(91, *tensor.shape[1:])
    state_dict["label_enc.weight"] = torch.arange(92.0)[:, None].expand(92, 64)
    return state_dict


def test_ids_and_names_of_coco() -> None:
    names = dict(zip(COCO_IDS, COCO_NAMES, strict=True))
    # A few pairs as COCO publishes them, one after each gap but two.
    known = {1: "person", 13: "stop sign", 27: "backpack", 31: "handbag", 46: "wine glass", 67: "dining table"}
    assert {i: names[i] for i in known} == known
    assert (names[70], names[72], names[84], names[90]) == ("toilet", "tv", "book", "toothbrush")
    assert (len(set(COCO_NAMES)), len(set(VOC_NAMES))) == (80, 20)


def test_91_rows_become_the_80_categories_of_coco(tmp_path: Path, dino: dict[str, Tensor]) -> None:
    torch.save({"model": with_91_rows(dino)}, tmp_path / "coco.pth")
    model, report = convert_checkpoint(tmp_path / "coco.pth", backbone=BACKBONE)
    # Row i of the file holds the number i, so the rows that were kept are the ids.
    for tensor in (model.class_head.bias, model.model.proposal_class_head.bias, model.label_embedding.weight[:, 5]):
        assert tensor.tolist() == COCO_IDS
    assert model.config.category_ids == COCO_IDS
    assert (model.config.id2label[0], model.config.id2label[79]) == ("person", "toothbrush")
    assert report.dropped_rows == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


def test_91_rows_can_be_kept(tmp_path: Path, dino: dict[str, Tensor]) -> None:
    torch.save({"model": with_91_rows(dino)}, tmp_path / "coco.pth")
    model, report = convert_checkpoint(tmp_path / "coco.pth", backbone=BACKBONE, keep_91_classes=True)
    assert model.class_head.bias.tolist() == list(range(91)) == model.config.category_ids
    assert model.label_embedding.weight[:, 0].tolist() == list(range(92))
    assert (model.config.id2label[0], model.config.id2label[90]) == ("label_0", "toothbrush")
    assert report.dropped_rows == []


def test_labels_come_from_the_categories_the_file_or_the_number_of_rows() -> None:
    in_order = {"by_category_id": False}
    assert labels_of(2, categories={7: "cat", 3: "dog"}, class_names=["a", "b"], **in_order).names == ["dog", "cat"]
    assert labels_of(2, class_names=["a", "b"], **in_order).names == ["a", "b"]
    assert labels_of(80, **in_order).category_ids == COCO_IDS
    assert (labels_of(20, **in_order).names, labels_of(20, **in_order).category_ids) == (VOC_NAMES, None)
    assert labels_of(3, **in_order).names == ["label_0", "label_1", "label_2"]
    by_id = labels_of(5, categories={4: "cat", 2: "dog"}, by_category_id=True)
    assert (by_id.names, by_id.rows, by_id.category_ids) == (["dog", "cat"], [2, 4], [2, 4])


def test_categories_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 categories .* for 3 class rows"):
        labels_of(3, class_names=["a", "b"], by_category_id=False)
    with pytest.raises(ValueError, match="ids run from 2 to 5, the file has 5 class rows"):
        labels_of(5, categories={2: "dog", 5: "cat"}, by_category_id=True)
    path = tmp_path / "categories.json"
    for text in ("no json", "[]", '{"images": []}', '[{"id": 1}]', '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]'):
        path.write_text(text)
        with pytest.raises(ValueError, match="categories"):
            read_categories(path)
    path.write_text('{"categories": [{"id": 9, "name": "b"}, {"id": 4, "name": "a"}]}')
    assert list(read_categories(path).items()) == [(4, "a"), (9, "b")]


# ---- Files that are none


class Marker:
    """An object whose unpickling runs code."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class History:
    """A class of a training framework."""


def test_harmless_objects_of_published_files_are_read(tmp_path: Path, dino: dict[str, Tensor]) -> None:
    scores = {"best_score": np.float64(0.4), "seed": np.int64(3), "map": np.float32(0.2)}
    path = semidetr_file(tmp_path / "scores.pth", dino, **scores, CLASSES=None, hook_msgs={"last": "x", **scores})
    model, _ = convert_checkpoint(path, backbone=BACKBONE)
    assert model.config.id2label[0] == "label_0"


def test_foreign_objects_are_refused_without_running_them(tmp_path: Path, dino: dict[str, Tensor]) -> None:
    path = semidetr_file(tmp_path / "foreign.pth", dino, history=History())
    with pytest.raises(
        ValueError, match=r"holds an object of \S*History, .*weights_only=False.*save its tensors"
    ) as info:
        convert_checkpoint(path)
    assert "\n" not in str(info.value)
    path = semidetr_file(tmp_path / "marker.pth", dino, history=Marker(tmp_path / "ran"))
    with pytest.raises(ValueError, match=r"holds an object of \w+\.mkdir"):
        convert_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["empty", "text", "pickle", "cut"])
def test_broken_files_end_in_one_line(tmp_path: Path, files: dict[str, Path], kind: str) -> None:
    content = {
        "empty": b"",
        "text": b"weights",
        "pickle": pickle.dumps({"model": [1, 2]}, protocol=2),
        "cut": files["dino"].read_bytes()[:5000],
    }
    path = tmp_path / "file.pth"
    path.write_bytes(content[kind])
    with pytest.raises(ValueError, match="file.pth: ") as info:
        convert_checkpoint(path)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "not a checkpoint but list"),
        ({}, "empty dictionary"),
        ({"model": {}}, "its entry 'model' is no state dict"),
        ({"state_dict": [1]}, "its entry 'state_dict' is no state dict but list"),
        ({"epoch": 3}, "'epoch' is not a tensor"),
        ({"model": {"conv.weight": torch.zeros(1)}}, "neither official DINO nor Semi-DETR; .* conv.weight"),
    ],
)
def test_files_of_another_kind_end_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "file.pth")


# ---- The command


def test_the_command_writes_a_folder_that_the_auto_classes_load(
    tmp_path: Path, recorded: dict, files: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "new" / "detector"
    assert main([str(files["dino"]), str(output), "--backbone", BACKBONE]) == 0
    text = capsys.readouterr().out
    assert "unmatched, not used: none" in text
    assert "parts not converted: optimizer, epoch, args" in text
    assert_recorded_outputs(AutoModelForObjectDetection.from_pretrained(output).eval(), recorded)
    assert AutoImageProcessor.from_pretrained(output).nms_iou is None
    assert not (output / "projector.safetensors").exists()
    assert [path.name for path in output.parent.iterdir()] == ["detector"]


@pytest.mark.parametrize(("steps", "nms_iou"), [("60000", 0.6), ("59998", None)])
def test_the_command_keeps_the_projector_and_notes_the_stage(
    tmp_path: Path, files: dict[str, Path], steps: str, nms_iou: float | None
) -> None:
    categories = [{"id": 2 * i, "name": f"thing {i}"} for i in range(13)]
    (tmp_path / "categories.json").write_text(json.dumps({"categories": categories}))
    arguments = ["--backbone", BACKBONE, "--one_to_many_steps", steps, "--network", "student"]
    arguments += ["--categories", str(tmp_path / "categories.json")]
    assert main([str(files["semidetr"]), str(tmp_path / "out"), *arguments]) == 0
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").nms_iou == nms_iou
    written = load_file(tmp_path / "out" / "projector.safetensors")
    ours = QueryProjector(64, 16, 3)
    ours.load_state_dict(written)
    for name, tensor in projector().items():
        assert torch.equal(ours.state_dict()[name.removeprefix("projector.")], tensor)
    config = SemiDetrConfig.from_pretrained(tmp_path / "out")
    assert config.id2label[12] == "thing 12"
    assert config.category_ids == list(range(0, 26, 2))


def test_a_failed_command_leaves_nothing_behind(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(SemiDetrImageProcessor, "save_pretrained", fail)
    assert main([str(files["dino"]), str(tmp_path / "out"), "--backbone", BACKBONE]) == 1
    # Saving the weights came before, with a progress bar.
    assert capsys.readouterr().err.endswith("semidetr_hf.conversion: error: no space left\n")
    assert list(tmp_path.iterdir()) == []


def test_the_command_overwrites_nothing(tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main([str(files["dino"]), str(tmp_path), "--backbone", BACKBONE]) == 1
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_stage_of_a_file_without_iteration_is_unknown(
    tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    arguments = [str(files["dino"]), str(tmp_path / "out"), "--backbone", BACKBONE, "--one_to_many_steps", "1"]
    assert main(arguments) == 1
    assert "has no meta['iter']" in capsys.readouterr().err


@pytest.mark.slow  # most of it are the imports of a second process
def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "semidetr_hf.conversion", "missing.pth", "out"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1:] == ["semidetr_hf.conversion: error: missing.pth: no such file"]
    assert list(tmp_path.iterdir()) == []
