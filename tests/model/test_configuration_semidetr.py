"""The configuration: round trip, sizes, and a message for every value that cannot work."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from tiny import tiny_config
from transformers import AutoConfig, AutoModelForObjectDetection

from semidetr_hf import SemiDetrConfig


def num_parameters(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForObjectDetection.from_config(config).parameters())


def test_round_trip(tmp_path):
    config = tiny_config(dropout=0.1, label_embedding_rows=9, backbone_config=None, freeze_backbone_norm=True)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is SemiDetrConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert loaded.backbone_config.backbone == "resnet50"
    assert loaded.id2label == {i: f"class {i}" for i in range(5)}  # JSON keys are text
    # Nothing in the file but plain values, and a complete map for remote code.
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "semidetr"
    assert set(saved["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForObjectDetection"}


def test_remote_code_map_is_always_this_folder():
    """A configuration that was loaded from a Hub repository names that repository; saved again, it is its own."""
    config = SemiDetrConfig(auto_map={"AutoConfig": "someone/else--configuration_semidetr.SemiDetrConfig"})
    assert config.auto_map["AutoConfig"] == "configuration_semidetr.SemiDetrConfig"


def test_names_of_other_detectors_can_be_read():
    config = tiny_config()
    assert (config.hidden_size, config.num_attention_heads, config.num_labels) == (32, 4, 5)


def test_sizes():
    nano, base = SemiDetrConfig.nano(), SemiDetrConfig.base()
    assert num_parameters(nano) < 2_000_000
    assert SemiDetrConfig.small(num_queries=100).num_queries == 100
    assert num_parameters(SemiDetrConfig.small()) == pytest.approx(18.5e6, rel=0.02)
    assert base.num_queries == 900
    assert num_parameters(base) == pytest.approx(47e6, rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"d_model": 30}, "d_model = 30 is not divisible by encoder_attention_heads = 4"),
        ({"decoder_attention_heads": 5}, "d_model = 32 is not divisible by decoder_attention_heads = 5"),
        ({"encoder_attention_heads": 0}, "d_model = 32 is not divisible by encoder_attention_heads = 0"),
        ({"group_norm_groups": 12}, "d_model = 32 is not divisible by group_norm_groups = 12"),
        (
            {"d_model": 6, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "group_norm_groups": 3},
            "d_model = 6 is not divisible by 4",
        ),
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"encoder_layers": 0}, "encoder_layers must be at least 1, got 0"),
        ({"decoder_layers": 0}, "decoder_layers must be at least 1, got 0"),
        ({"num_feature_levels": 0}, "num_feature_levels must be at least 1, got 0"),
        ({"num_queries": 0}, "num_queries must be at least 1, got 0"),
        ({"encoder_n_points": 0}, "encoder_n_points must be at least 1, got 0"),
        ({"decoder_n_points": -4}, "decoder_n_points must be at least 1, got -4"),
        ({"encoder_ffn_dim": 0}, "encoder_ffn_dim must be at least 1, got 0"),
        ({"decoder_ffn_dim": 0}, "decoder_ffn_dim must be at least 1, got 0"),
        ({"class_cost": -1}, "class_cost must be finite and not negative, got -1"),
        ({"bbox_cost": float("inf")}, "bbox_cost must be finite and not negative, got inf"),
        ({"giou_cost": float("nan")}, "giou_cost must be finite and not negative, got nan"),
        ({"class_loss_coefficient": -0.5}, "class_loss_coefficient must be finite and not negative, got -0.5"),
        ({"bbox_loss_coefficient": float("nan")}, "bbox_loss_coefficient must be finite and not negative, got nan"),
        ({"giou_loss_coefficient": -2}, "giou_loss_coefficient must be finite and not negative, got -2"),
        ({"focal_gamma": -1.0}, "focal_gamma must be finite and not negative, got -1.0"),
        ({"focal_alpha": 1.5}, r"focal_alpha must lie in \[0, 1\], got 1.5"),
        ({"denoising_label_noise": -0.1}, r"denoising_label_noise must lie in \[0, 1\], got -0.1"),
        ({"denoising_box_noise": -0.4}, "denoising_box_noise must be finite and not negative, got -0.4"),
        ({"matcher_eps": 0.0}, "matcher_eps must be finite and above 0, got 0.0"),
        ({"num_denoising_queries": -1}, "num_denoising_queries must not be negative, got -1"),
        ({"num_frozen_backbone_stages": -1}, "num_frozen_backbone_stages must not be negative, got -1"),
        ({"inverse_sigmoid_eps": 0.5}, "inverse_sigmoid_eps must lie between 0 and 0.5, got 0.5"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"position_embedding_temperature": 0}, "position_embedding_temperature must be finite and above 0, got 0"),
        ({"position_embedding_temperature": float("nan")}, "position_embedding_temperature must be finite"),
        ({"activation_function": "rellu"}, "activation_function must be one of .*relu.*, got 'rellu'"),
        ({"id2label": {}, "label2id": {}}, "num_labels must be at least 1, got 0"),
        ({"class_cost": 10**400}, "class_cost must be finite and not negative, got 10"),
        ({"label_embedding_rows": 4}, "label_embedding_rows = 4 is less than the 5 labels"),
        ({"num_channels": 1, "backbone_config": {"model_type": "resnet", "num_channels": 3}}, "num_channels = 1, but"),
    ],
)
def test_values_that_do_not_fit_together(overrides, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        tiny_config(**overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone": "resnet50"}, "backbone is not a field of SemiDetrConfig; use backbone_config"),
        ({"num_classes": 3}, "num_classes is not a field of SemiDetrConfig; use num_labels"),
        ({"backbone_config": {"depths": [1]}}, "backbone_config needs a model_type known to transformers, got 'None'"),
        ({"backbone_config": {"model_type": "resnet5"}}, "needs a model_type known to transformers, got 'resnet5'"),
    ],
)
def test_wrong_names(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


def test_the_ends_of_the_ranges_are_allowed():
    zeros = ["class_cost", "bbox_cost", "giou_loss_coefficient", "focal_gamma", "focal_alpha", "denoising_box_noise"]
    config = tiny_config(**dict.fromkeys(zeros, 0), denoising_label_noise=1, encoder_n_points=1, decoder_ffn_dim=1)
    assert [getattr(config, name) for name in zeros] == [0] * 6
    assert tiny_config(focal_alpha=1, denoising_label_noise=0).focal_alpha == 1


def test_wrong_type_is_named():
    with pytest.raises(StrictDataclassFieldValidationError, match="num_queries"):
        tiny_config(num_queries="many")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"class_loss_normalizer": "batch"}, "class_loss_normalizer"),
        ({"class_loss_normalizer": None}, "class_loss_normalizer"),
        ({"denoise_empty_images": "yes"}, "denoise_empty_images"),
    ],
)
def test_choices_that_do_not_exist_are_named(overrides, message):
    with pytest.raises(StrictDataclassFieldValidationError, match=message):
        tiny_config(**overrides)


def test_variants_of_the_loss_reach_the_criterion_and_survive_a_round_trip(tmp_path):
    default = AutoModelForObjectDetection.from_config(tiny_config()).criterion
    assert (default.class_normalizer, default.denoise_empty_images) == ("global", True)
    tiny_config(class_loss_normalizer="process", denoise_empty_images=False).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    released = AutoModelForObjectDetection.from_config(config).criterion
    assert (released.class_normalizer, released.denoise_empty_images) == ("process", False)


def test_channels_reach_the_backbone():
    assert tiny_config(num_channels=1).backbone_config.num_channels == 1


def test_presets_can_be_overridden():
    config = SemiDetrConfig.nano(num_queries=7, id2label={0: "digit"}, label2id={"digit": 0})
    assert (config.num_queries, config.num_labels, config.d_model) == (7, 1, 128)
