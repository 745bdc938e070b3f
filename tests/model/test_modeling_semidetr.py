"""What transformers' own tests ask of a detection model: outputs, precision, equivalences, checkpointing, loss."""

import copy
import socket

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch.testing import assert_close

from semidetr_hf import SemiDetrForObjectDetection
from semidetr_hf.model.decoder_queries import DecoderQueries

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


# ---- Extra queries


def extra(images=2, group_sizes=(3, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = sum(group_sizes)
    return DecoderQueries(
        content=torch.randn(images, count, 32, generator=generator),
        reference_logits=torch.randn(images, count, 4, generator=generator),
        group_sizes=group_sizes,
    )


@torch.no_grad()
@pytest.mark.parametrize("denoises", [False, True])
def test_extra_queries_change_no_prediction_and_their_states_stand_first(model, denoises):
    pixel_values, pixel_mask, labels = tiny_batch()
    encoded, queries = model.encode(pixel_values, pixel_mask), extra()
    denoising = model.denoising_queries(labels) if denoises else None
    plain, plain_decoded = model.decode(encoded, denoising)
    predictions, decoded = model.decode(encoded, denoising, extra_queries=queries)
    for name in ("logits", "boxes", "denoising_logits", "denoising_boxes", "encoder_logits", "encoder_boxes"):
        assert_close(getattr(predictions, name), getattr(plain, name), rtol=1e-4, atol=1e-5)
    assert predictions.denoising is denoising
    states, plain_states = decoded.intermediate_hidden_states, plain_decoded.intermediate_hidden_states
    assert states.shape[2] == plain_states.shape[2] + 5
    assert_close(states[:, :, 5:], plain_states, rtol=1e-4, atol=1e-5)
    # Groups do not see each other: they are answered as without denoising.
    _, alone = model.decode(encoded, extra_queries=queries)
    assert_close(states[:, :, :5], alone.intermediate_hidden_states[:, :, :5], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_no_extra_query_is_like_none(model):
    encoded = model.encode(tiny_batch()[0])
    none, empty = model.decode(encoded), model.decode(encoded, extra_queries=extra(group_sizes=()))
    assert_close(empty[0].logits, none[0].logits)
    assert empty[1].intermediate_hidden_states.shape == none[1].intermediate_hidden_states.shape


def test_extra_queries_are_trained(model):
    model = copy.deepcopy(model).train()
    queries = extra()
    content = queries.content.requires_grad_()
    _, decoded = model.decode(model.encode(tiny_batch()[0]), extra_queries=queries)
    decoded.intermediate_hidden_states[:, :, :5].square().sum().backward()
    assert content.grad.any(-1).all()


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
    # The second name is that of transformers below 5.23.
    getattr(saving, "activation_checkpointing_enable", saving.gradient_checkpointing_enable)({"use_reentrant": False})
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


def test_building_and_loading_stay_offline(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = tiny_model(
        backbone_config={"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3]}
    )
    model.save_pretrained(tmp_path)
    loaded = SemiDetrForObjectDetection.from_pretrained(tmp_path)
    assert torch.equal(loaded.class_head.weight, model.class_head.weight)
