"""Backbones of timm and transformers: built, frozen, refused; channels that stand last."""

import pytest
import torch
from tiny import tiny_batch, tiny_config, tiny_model
from torch.testing import assert_close

from semidetr_hf import SemiDetrForObjectDetection, SemiDetrModel
from semidetr_hf.model.backbone import build_backbone, freeze_first_stages


def timm_backbone(name, out_indices=(1, 2, 3)):
    return {"model_type": "timm_backbone", "backbone": name, "out_indices": list(out_indices)}


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "convnext_atto", "test_mambaout"])
@torch.no_grad()
def test_timm_backbones(name):
    model = tiny_model(backbone_config=timm_backbone(name), num_frozen_backbone_stages=2)
    assert model(tiny_batch(1)[0]).logits.isfinite().all()
    frozen = [parameter.requires_grad for parameter in model.model.backbone.parameters()]
    assert frozen == sorted(frozen)  # the first parameters, and no other, are frozen
    assert 0 < sum(frozen) < len(frozen)
    assert all(p.requires_grad for n, p in model.named_parameters() if "backbone" not in n)


@pytest.mark.parametrize(
    ("name", "stages", "frozen_parts"),
    [
        # The stem of timm's ResNet ends in an activation, which has no parameters of its own.
        ("resnet18", 1, {"conv1", "bn1"}),
        ("resnet18", 2, {"conv1", "bn1", "layer1"}),
        # Blocks hold batch norms of the same name as that of the stem.
        ("mobilenetv3_small_050", 1, {"conv_stem", "bn1"}),
        ("convnext_atto", 1, {"stem_0", "stem_1", "stages_0"}),
    ],
)
def test_frozen_stages_of_timm(name, stages, frozen_parts):
    config = tiny_config(backbone_config=timm_backbone(name), num_frozen_backbone_stages=stages)
    backbone = SemiDetrModel(config).backbone
    found = {n.split(".")[1] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert found == frozen_parts
    assert found.isdisjoint(n.split(".")[1] for n, p in backbone.named_parameters() if p.requires_grad)


def test_frozen_stages_of_transformers():
    backbone = SemiDetrModel(tiny_config(num_frozen_backbone_stages=2)).backbone
    trained = {".".join(n.split(".")[:3]) for n, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"encoder.stages.1", "encoder.stages.2", "encoder.stages.3"}


def test_frozen_norm_keeps_its_statistics():
    config = tiny_config(
        backbone_config=timm_backbone("resnet18"), freeze_backbone_norm=True, num_frozen_backbone_stages=2
    )
    frozen = SemiDetrForObjectDetection(config).train()
    trainable = SemiDetrForObjectDetection(
        tiny_config(backbone_config=timm_backbone("resnet18"), freeze_backbone_norm=False)
    ).train()
    pixel_values, pixel_mask, labels = tiny_batch()
    for model, changes in ((frozen, False), (trainable, True)):
        before = {name: buffer.clone() for name, buffer in model.model.backbone.named_buffers()}
        model(pixel_values, pixel_mask, labels).loss.backward()
        after = dict(model.model.backbone.named_buffers())
        moved = any(not torch.equal(after[name], value) for name, value in before.items() if "running" in name)
        assert moved is changes
    parameters = [name for name, _ in frozen.model.backbone.named_parameters()]
    assert not any("bn" in name for name in parameters)
    assert any("bn" in name for name, _ in trainable.model.backbone.named_parameters())


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (timm_backbone("resnet5000"), r"backbone 'resnet5000' .*cannot be built \(Unknown model"),
        (timm_backbone("resnet18", (2, 9)), r"backbone 'resnet18' with out_indices \[2, 9\] cannot be built"),
        ({"model_type": "bert"}, "backbone 'bert' .*cannot be built"),
        (timm_backbone("resnet18", (0, 1, 2, 3, 4)), "more than num_feature_levels = 4"),
    ],
)
def test_backbones_that_cannot_be_built_are_named(backbone, message):
    with pytest.raises(ValueError, match=message) as error:
        SemiDetrModel(tiny_config(backbone_config=backbone))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "test_vit", "test_coatnet"])
def test_backbones_of_one_image_size_are_refused(name):
    with torch.device("meta"), pytest.raises(ValueError, match=f"backbone '{name}' does not take images of") as error:
        SemiDetrModel(tiny_config(backbone_config=timm_backbone(name)))
    assert "such as resnet50 or convnext_tiny of timm, or model_type 'swin' of transformers" in str(error.value)
    assert "\n" not in str(error.value)


def test_backbones_that_timm_only_suspects_of_one_image_size_are_taken():
    with torch.device("meta"):
        backbone = SemiDetrModel(tiny_config(backbone_config=timm_backbone("xcit_nano_12_p16_224"))).backbone
        assert backbone._backbone.pretrained_cfg["fixed_input_size"]
        assert backbone.training
        assert backbone(torch.zeros(1, 3, 64, 96)).feature_maps[0].shape == (1, 128, 4, 6)


@torch.no_grad()
def test_channels_that_stand_last_are_moved():
    """Also where shapes do not tell: at stride 4 a width of 64 pixels gives 16 columns, as many as channels."""
    config = tiny_config(backbone_config=timm_backbone("test_mambaout", (0, 1, 2)))
    model = SemiDetrModel(config).eval()
    pixels = torch.randn(1, 3, 96, 4 * model.backbone.channels[0])
    features = model.backbone(pixels).feature_maps
    assert features[0].shape == (1, 24, model.backbone.channels[0], model.backbone.channels[0])
    for i, (feature, level) in enumerate(zip(features, model.project(pixels), strict=False)):
        assert_close(level, model.input_proj[i](feature.movedim(-1, 1)))


@torch.no_grad()
def test_swin_of_transformers_takes_any_size():
    swin = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 1], "window_size": 3}
    config = tiny_config(backbone_config={**swin, "out_features": ["stage1", "stage2", "stage3"]})
    pyramid = SemiDetrModel(config).eval().project(torch.randn(1, 3, 100, 61))
    assert [tuple(level.shape[:2]) for level in pyramid] == [(1, 32)] * 4


def test_too_many_frozen_stages_are_named():
    with pytest.raises(ValueError, match="num_frozen_backbone_stages = 9, but the backbone has only 5"):
        SemiDetrModel(tiny_config(num_frozen_backbone_stages=9))


def test_no_frozen_stage_leaves_everything_to_train():
    backbone = build_backbone(tiny_config(num_frozen_backbone_stages=0))
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    freeze_first_stages(backbone, 0)
    # Nor does it undo what another hand has frozen.
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_the_model_holds_the_backbone_of_its_configuration():
    config = tiny_config(num_frozen_backbone_stages=1)
    alone, inside = build_backbone(config), SemiDetrModel(config).backbone
    for (name, ours), (other, theirs) in zip(alone.named_parameters(), inside.named_parameters(), strict=True):
        assert (name, ours.shape, ours.requires_grad) == (other, theirs.shape, theirs.requires_grad)


def test_a_stage_whose_parameters_cannot_be_told_by_name_is_refused():
    backbone = build_backbone(tiny_config())
    backbone.stage_names = ["unknown", "other"]
    with pytest.raises(ValueError, match="num_frozen_backbone_stages = 1: no parameter of stage 'unknown'"):
        freeze_first_stages(backbone, 1)


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050"])
def test_frozen_norms_keep_the_precision_of_autocast(name):
    """Their weights are float32, and what they return would be kept for the backward pass at twice the size."""
    config = tiny_config(backbone_config=timm_backbone(name), freeze_backbone_norm=True)
    backbone = build_backbone(config)
    seen = []
    for module in backbone.modules():
        if type(module).__name__.startswith("FrozenBatchNorm"):
            module.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    pixel_values = tiny_batch(1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        low = backbone(pixel_values).feature_maps
    assert len(seen) > 5
    assert {given for given, _ in seen} == {torch.bfloat16} and all(given == found for given, found in seen)
    for rounded, exact in zip(low, backbone(pixel_values).feature_maps, strict=True):
        assert_close(rounded.float(), exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))
