"""Saving and loading: nothing lost, and whatever a checkpoint lacks is initialised like in a new model."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_batch, tiny_config, tiny_model
from torch.testing import assert_close
from transformers import AutoModelForObjectDetection

from semidetr_hf import SemiDetrForObjectDetection, SemiDetrModel
from semidetr_hf.model.modeling_semidetr import sampling_grid


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(folder)
    return folder


def load_without(folder, target, *parts):
    """Load a copy of the checkpoint that lacks all entries with one of the parts in their name."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not any(part in name for part in parts)}
    assert len(kept) < len(weights)
    (target / "config.json").write_text((folder / "config.json").read_text())
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    model, info = SemiDetrForObjectDetection.from_pretrained(target, output_loading_info=True)
    assert set(info["missing_keys"]) == set(weights) - set(kept)
    for name, value in kept.items():
        assert torch.equal(model.state_dict()[name], value), name
    return model


@torch.no_grad()
def test_complete_checkpoint(folder):
    model, info = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    pixel_values, pixel_mask, _ = tiny_batch()
    original = tiny_model()
    assert torch.equal(model(pixel_values, pixel_mask).logits, original(pixel_values, pixel_mask).logits)
    for (name, a), b in zip(model.state_dict().items(), original.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_shared_heads_are_stored_once(folder):
    names = [name for name in load_file(folder / "model.safetensors") if "head" in name]
    assert sorted(name for name in names if "class_head" in name) == [
        "class_head.bias",
        "class_head.weight",
        "model.proposal_class_head.bias",
        "model.proposal_class_head.weight",
    ]
    assert sum("decoder.box_head" in name for name in names) == 6  # three layers, weight and bias


def test_base_model_loads_from_the_detector(folder):
    model, info = SemiDetrModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    detector = tiny_model()
    assert torch.equal(model.query_content.weight, detector.model.query_content.weight)


def test_missing_sampling_offsets_get_their_grid(folder, tmp_path):
    model = load_without(folder, tmp_path, "sampling_offsets", "attention_weights")
    for layers, name in ((model.model.encoder.layers, "self_attn"), (model.model.decoder.layers, "cross_attn")):
        for layer in layers:
            attention = getattr(layer, name)
            assert_close(attention.sampling_offsets.bias, sampling_grid(4, 4, 4).flatten())
            assert not attention.sampling_offsets.weight.any()
            assert not attention.attention_weights.weight.any() and not attention.attention_weights.bias.any()


def test_missing_heads_get_their_prior_and_zeros(folder, tmp_path):
    model = load_without(folder, tmp_path, "class_head", "box_head.layers.2")
    for head in (model.class_head, model.model.proposal_class_head):
        assert_close(head.bias, torch.full((5,), -math.log(99)))
        assert 0 < head.weight.std() < 0.5
    for head in (model.model.decoder.box_head, model.model.proposal_box_head):
        assert not head.layers[2].weight.any() and not head.layers[2].bias.any()


def test_missing_tables_and_layers_get_their_spread(folder, tmp_path):
    parts = ("level_embedding", "label_embedding", "query_content", "fc1", "input_proj", "layer_norm")
    model = load_without(folder, tmp_path, *parts)
    base = model.model
    # Normal with standard deviation 1; the tables have only 128 and 160 entries.
    assert base.level_embedding.weight.std().item() == pytest.approx(1, rel=0.3)
    assert model.label_embedding.weight.std().item() == pytest.approx(1, rel=0.3)
    # Xavier: uniform within sqrt(6 / (rows + columns)), whose standard deviation is that bound / sqrt(3).
    weights = [base.query_content.weight, base.encoder.layers[0].mlp.fc1.weight, base.decoder.layers[1].mlp.fc1.weight]
    for weight in weights:
        bound = math.sqrt(6 / sum(weight.shape))
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    for convolution, norm in base.input_proj:
        assert 0 < convolution.weight.abs().max() < 1 and not convolution.bias.any()
        assert (norm.weight == 1).all() and not norm.bias.any()
    for layer in (*base.encoder.layers, *base.decoder.layers):
        assert (layer.final_layer_norm.weight == 1).all() and (layer.self_attn_layer_norm.bias == 0).all()


def test_new_model_is_initialised_alike():
    """A model that is built, not loaded, follows the same rules."""
    torch.manual_seed(0)
    model = SemiDetrForObjectDetection(tiny_config())
    assert_close(model.class_head.bias, torch.full((5,), -math.log(99)))
    assert_close(model.model.encoder.layers[0].self_attn.sampling_offsets.bias, sampling_grid(4, 4, 4).flatten())
    assert not model.model.decoder.box_head.layers[2].weight.any()
    assert model.label_embedding.weight.std().item() == pytest.approx(1, rel=0.3)


def test_another_number_of_labels(folder):
    model, info = SemiDetrForObjectDetection.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    heads = {"class_head", "model.proposal_class_head", "label_embedding"}
    assert {name.rsplit(".", 1)[0] for name, *_ in info["mismatched_keys"]} == heads
    assert_close(model.class_head.bias, torch.full((3,), -math.log(99)))
    assert model.eval()(tiny_batch(1)[0]).logits.shape == (1, 12, 3)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        SemiDetrForObjectDetection.from_pretrained(folder, num_labels=3)


def test_frozen_parts_stay_frozen_after_loading(tmp_path):
    backbone = {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [2, 3, 4]}
    options = {"freeze_backbone_norm": True, "num_frozen_backbone_stages": 2}
    model = tiny_model(backbone_config=backbone, **options)
    model.save_pretrained(tmp_path)
    loaded, info = SemiDetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trained
    in_backbone = {name.split("_backbone.")[1].split(".")[0] for name in trained if "_backbone." in name}
    assert in_backbone == {"layer2", "layer3", "layer4"}
    for name, buffer in model.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer), name


def test_bf16_checkpoint_loads_as_bf16(tmp_path):
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert SemiDetrForObjectDetection.from_pretrained(tmp_path).dtype == torch.bfloat16
