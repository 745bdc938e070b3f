"""What transformers' own tests ask of a detection model: outputs, precision, equivalences, checkpointing, loss."""

import copy
import socket

import pytest
import torch
from tiny import tiny_batch, tiny_config, tiny_model
from torch.testing import assert_close

from semidetr_hf import SemiDetrForObjectDetection, SemiDetrModel

TOKENS = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2  # of 64 x 96 pixels at strides 8, 16, 32, 64


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def eager():
    return tiny_model(attn_implementation={"": "eager"})


def boxes(*counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "class_labels": torch.randint(0, 5, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.3 + 0.3,
        }
        for count in counts
    ]


# ---- Outputs


@torch.no_grad()
def test_shapes(model):
    pixel_values, pixel_mask, labels = tiny_batch()
    output = model(pixel_values, pixel_mask, labels)
    assert output.logits.shape == (2, 12, 5)
    assert output.pred_boxes.shape == (2, 12, 4)
    assert output.intermediate_hidden_states.shape == (2, 2, 12, 32)
    assert output.encoder_last_hidden_state.shape == (2, TOKENS, 32)
    assert len(output.auxiliary_outputs) == 1
    assert list(output)[:4] == ["loss", "loss_dict", "logits", "pred_boxes"]
    assert ((output.pred_boxes >= 0) & (output.pred_boxes <= 1)).all()
    # Without labels every output is a tensor with the batch first, so that pipelines can take the images apart.
    assert all(isinstance(value, torch.Tensor) and len(value) == 2 for value in model(pixel_values).values())


@torch.no_grad()
def test_hidden_states_and_attentions(eager):
    pixel_values, pixel_mask, _ = tiny_batch()
    output = eager(pixel_values, pixel_mask, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.encoder_hidden_states] == [(2, TOKENS, 32)] * 3
    assert [state.shape for state in output.decoder_hidden_states] == [(2, 12, 32)] * 3
    assert [weights.shape for weights in output.encoder_attentions] == [(2, TOKENS, 4, 4, 4)] * 2
    assert [weights.shape for weights in output.cross_attentions] == [(2, 12, 4, 4, 4)] * 2
    assert [weights.shape for weights in output.decoder_attentions] == [(2, 4, 12, 12)] * 2
    for weights in (*output.decoder_attentions, *(w.flatten(-2) for w in output.cross_attentions)):
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert_close(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
    silent = eager(pixel_values, pixel_mask)
    assert silent.decoder_attentions is None and silent.encoder_hidden_states is None
    assert_close(silent.logits, output.logits)


@torch.no_grad()
def test_tuple_output(model):
    pixel_values, pixel_mask, labels = tiny_batch()
    output, values = (
        model(pixel_values, pixel_mask, labels),
        model(pixel_values, pixel_mask, labels, return_dict=False),
    )
    assert isinstance(values, tuple)
    assert_close(values[0], output.loss)
    assert_close(values[2], output.logits)
    assert len(values) == len(output)


@torch.no_grad()
def test_base_model_finds_the_same_boxes(model):
    pixel_values, pixel_mask, _ = tiny_batch()
    base, full = model.model(pixel_values, pixel_mask), model(pixel_values, pixel_mask)
    assert_close(base.last_hidden_state, full.last_hidden_state)
    assert_close(model.class_head(base.last_hidden_state), full.logits)


@torch.no_grad()
def test_sdpa_equals_eager(model, eager):
    eager.load_state_dict(model.state_dict())
    pixel_values, pixel_mask, _ = tiny_batch()
    assert (model.config._attn_implementation, eager.config._attn_implementation) == ("sdpa", "eager")
    assert_close(eager(pixel_values, pixel_mask).logits, model(pixel_values, pixel_mask).logits)


# ---- Equivalences


@torch.no_grad()
def test_batch_of_two_equals_two_of_one(model):
    pixel_values, _, _ = tiny_batch()
    both = model(pixel_values)
    for i in range(2):
        alone = model(pixel_values[i : i + 1])
        assert_close(both.logits[i : i + 1], alone.logits, rtol=1e-4, atol=1e-5)
        assert_close(both.pred_boxes[i : i + 1], alone.pred_boxes, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_encoder_does_not_see_the_padding(model, monkeypatch):
    """Given the same pyramid, proposals are the same boxes, not half as wide, whatever lies in the padding.

    Two things do see it, as in official DINO: the group norms and convolutions that make the pyramid, and the box
    encoding of the decoder, which is taken relative to the padded image.
    """
    narrow = torch.randn(1, 3, 64, 64)
    wide = torch.cat([narrow, torch.zeros(1, 3, 64, 64)], dim=-1)
    mask = (torch.arange(128) < 64).long().expand(1, 64, 128)
    alone = model(narrow)
    pyramid, padded_pyramid = model.model.project(narrow), model.model.project(wide)
    for level, padded_level in zip(pyramid, padded_pyramid, strict=True):
        padded_level[..., : level.shape[-1]] = level
    monkeypatch.setattr(model.model, "project", lambda pixel_values: padded_pyramid)
    behind = model(wide, mask)
    assert_close(behind.encoder_logits, alone.encoder_logits, rtol=1e-4, atol=1e-5)
    assert_close(behind.encoder_pred_boxes, alone.encoder_pred_boxes, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_fewer_tokens_than_queries():
    model = tiny_model(num_queries=900)
    output = model(torch.randn(1, 3, 32, 32))
    tokens = 4 * 4 + 2 * 2 + 1 + 1
    assert output.logits.shape == (1, tokens, 5)
    assert output.logits.isfinite().all() and output.pred_boxes.isfinite().all()


# ---- Loss


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("counts", [(0, 0), (30, 1), (0, 2)])
def test_loss_and_gradients_are_finite_for_any_number_of_boxes(model, training, counts):
    pixel_values, pixel_mask, _ = tiny_batch()
    model = copy.deepcopy(model).train(training)
    output = model(pixel_values, pixel_mask, boxes(*counts))
    output.loss.backward()
    assert output.loss.isfinite()
    assert any("dn" in name for name in output.loss_dict) is training
    for name, parameter in model.named_parameters():
        if training:
            assert parameter.grad is not None, name  # also of the label table if no image has a box
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_loss_at_evaluation_has_no_randomness(model):
    pixel_values, pixel_mask, labels = tiny_batch()
    with torch.no_grad():
        torch.manual_seed(1)
        first = model(pixel_values, pixel_mask, labels)
        torch.manual_seed(2)
        second = model(pixel_values, pixel_mask, labels)
    assert torch.equal(first.loss, second.loss)
    expected = sum(
        {"ce": 2.0, "bb": 5.0, "gi": 2.0}[name.split("_")[1][:2]] * value for name, value in first.loss_dict.items()
    )
    assert_close(first.loss, expected)


def test_training_does_not_leak_denoising_queries(model):
    pixel_values, pixel_mask, labels = tiny_batch()
    evaluated = model(pixel_values, pixel_mask)
    trained = copy.deepcopy(model).train()
    trained.model.backbone.eval()  # its batch norms would see the statistics of the batch
    output = trained(pixel_values, pixel_mask, labels)
    assert output.logits.shape == (2, 12, 5)
    # Matching queries do not see the denoising queries in front of them.
    assert_close(output.logits, evaluated.logits, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(model):
    pixel_values, pixel_mask, labels = tiny_batch()
    plain, saving = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    layers = [*saving.model.encoder.layers, *saving.model.decoder.layers]
    saving.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # name below 5.23
    assert all(layer.gradient_checkpointing for layer in layers)
    losses = []
    for each in (plain, saving):
        torch.manual_seed(3)
        losses.append(each(pixel_values, pixel_mask, labels).loss)
        losses[-1].backward()
    assert_close(losses[0], losses[1])
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


# ---- Precision and compilation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_low_precision_weights(model, dtype):
    pixel_values, pixel_mask, _ = tiny_batch()
    output = copy.deepcopy(model).to(dtype)(pixel_values, pixel_mask)
    assert output.logits.dtype == dtype
    assert output.pred_boxes.dtype == torch.float32  # boxes stay exact
    assert output.logits.isfinite().all() and output.pred_boxes.isfinite().all()


def test_bf16_autocast_trains(model):
    pixel_values, pixel_mask, labels = tiny_batch()
    model = copy.deepcopy(model).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(pixel_values, pixel_mask, labels).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@torch.no_grad()
def test_compiled_model_gives_the_same(model):
    pixel_values, pixel_mask, _ = tiny_batch()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    assert_close(
        compiled(pixel_values, pixel_mask).logits, model(pixel_values, pixel_mask).logits, rtol=1e-4, atol=1e-5
    )


# ---- Backbones


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


def test_building_and_loading_stay_offline(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = tiny_model(backbone_config=timm_backbone("resnet18"))
    model.save_pretrained(tmp_path)
    loaded = SemiDetrForObjectDetection.from_pretrained(tmp_path)
    assert torch.equal(loaded.class_head.weight, model.class_head.weight)
