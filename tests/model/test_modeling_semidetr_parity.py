"""Parity with official DINO, scaled down, on recorded weights, inputs and random draws (see fixtures/README.md)."""

import pytest
import timm
import torch
from recorded import load_recorded
from timm.models import build_model_with_cfg
from timm.models.resnet import Bottleneck, ResNet
from torch.testing import assert_close

from semidetr_hf import SemiDetrConfig, SemiDetrForObjectDetection
from semidetr_hf.conversion import convert_dino_state_dict
from semidetr_hf.model.criterion import average_num_boxes
from semidetr_hf.model.denoising import DenoisingNoise, build_denoising_queries


@timm.models.register_model
def recorded_resnet(pretrained=False, **kwargs):
    """The bottleneck network of the fixture: stem 64, stages 16/32/64/128, blocks 1, 2, 1, 1."""
    sizes = {"layers": (1, 2, 1, 1), "channels": (4, 8, 16, 32)}
    kwargs.pop("pretrained_cfg_overlay", None)
    return build_model_with_cfg(ResNet, "recorded_resnet", pretrained, block=Bottleneck, **sizes, **kwargs)


@pytest.fixture(scope="module")
def recorded():
    return load_recorded("dino_tiny.npz")


def recorded_config(**overrides):
    return SemiDetrConfig(
        **{
            "backbone_config": {
                "model_type": "timm_backbone",
                "backbone": "recorded_resnet",
                "out_indices": [2, 3, 4],
            },
            "num_labels": 13,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "num_queries": 30,
            "inverse_sigmoid_eps": 1e-3,
            "num_denoising_queries": 50,
            "label_embedding_rows": 14,
            "class_loss_coefficient": 1.0,
            **overrides,
        }
    )


@pytest.fixture(scope="module")
def model(recorded):
    state_dict = dict(recorded["state_dict"])
    for line in recorded["aliases"].split("\n"):
        name, first = line.split("\t")
        state_dict[name] = state_dict[first]
    model = SemiDetrForObjectDetection(recorded_config())
    missing, unexpected = model.load_state_dict(convert_dino_state_dict(state_dict), strict=False)
    assert missing == [] and unexpected == []
    return model


def close(actual, expected, rtol=1e-4, atol=5e-5):
    assert_close(actual, expected.to(actual.dtype), rtol=rtol, atol=atol)


@torch.no_grad()
def test_inference(recorded, model):
    model.eval()
    inputs, expected = recorded["inputs"], recorded["eval"]
    pixel_mask = (~inputs["mask"]).long()
    features = model.model.backbone(inputs["pixel_values"]).feature_maps
    for feature, wanted in zip(features, expected["backbone_feats"], strict=True):
        close(feature, wanted)
    encoded = model.encode(inputs["pixel_values"], pixel_mask)
    close(encoded.memory, expected["memory"])
    close(encoded.proposal_logits, expected["interm_logits"])
    close(encoded.proposal_box_logits.sigmoid(), expected["interm_boxes"], atol=5e-6)
    predictions, decoded = model.decode(encoded)
    for layer in range(2):
        close(decoded.intermediate_hidden_states[:, layer], expected["decoder_hidden"][layer])
        close(decoded.intermediate_reference_points[:, layer], expected["decoder_refs"][layer], atol=5e-6)
        close(predictions.logits[layer], expected["logits"][layer])
        close(predictions.boxes[layer], expected["boxes"][layer], atol=5e-6)


def recorded_noise(draws, labels_per_image, num_groups):
    """Order the draws, made for all boxes of the batch per repetition, by image, group, half and box."""
    max_boxes = max(labels_per_image)
    total, repetitions = sum(labels_per_image), 2 * num_groups
    shape = (len(labels_per_image), num_groups, 2, max_boxes)
    flips = torch.zeros(shape, dtype=torch.bool)
    random_labels = torch.zeros(shape, dtype=torch.int64)
    shift = torch.zeros(*shape, 4)
    chosen = (draws["label_noise_p"] < 0.25).view(repetitions, total)
    new_labels = torch.zeros(repetitions, total, dtype=torch.int64)
    new_labels[chosen] = draws["new_labels"]
    signs = draws["box_sign01"].view(repetitions, total, 4) * 2 - 1
    parts = draws["box_rand"].view(repetitions, total, 4)
    start = 0
    for image, count in enumerate(labels_per_image):
        boxes = slice(start, start + count)
        for repetition in range(repetitions):
            group, half = divmod(repetition, 2)
            flips[image, group, half, :count] = chosen[repetition, boxes]
            random_labels[image, group, half, :count] = new_labels[repetition, boxes]
            shift[image, group, half, :count] = signs[repetition, boxes] * (parts[repetition, boxes] + half)
        start += count
    return DenoisingNoise(flips, random_labels, shift)


def training_losses(recorded, model, case):
    expected = recorded[case]
    targets = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in expected["targets"]]
    counts = [len(t["class_labels"]) for t in targets]
    num_groups = int(expected["dn"]["num_groups"]) if sum(counts) else 0
    noise = recorded_noise(expected["draws"], counts, num_groups)
    denoising = build_denoising_queries(targets, model.label_embedding, noise=noise, box_noise=0.4, eps=1e-3)
    model.train()
    encoded = model.encode(recorded["inputs"]["pixel_values"], (~recorded["inputs"]["mask"]).long())
    predictions, _ = model.decode(encoded, denoising)
    return predictions, denoising, model.criterion(predictions, targets, average_num_boxes(targets, model.device))


def test_denoising_queries(recorded, model):
    _, denoising, _ = training_losses(recorded, model, "train")
    expected = recorded["train"]["dn"]
    close(denoising.queries.content, expected["query_label"])
    close(denoising.queries.reference_logits, expected["query_box_unact"])
    assert denoising.queries.group_sizes == (8,) * 12


@pytest.mark.parametrize("case", ["train", "train_one_empty", "train_all_empty"])
def test_losses(recorded, model, case):
    expected = recorded[case]
    predictions, _, losses = training_losses(recorded, model, case)
    wanted = {name.replace("interm", "enc"): value for name, value in expected["losses"].items()}
    # Official DINO numbers denoising layers "dn_0" like ours and logs some terms that are not part of the loss.
    wanted = {name: value for name, value in wanted.items() if name.split("_")[1] in ("ce", "bbox", "giou")}
    assert set(losses) == set(wanted)
    for name, value in losses.items():
        close(value, wanted[name], atol=1e-5)
    close(model.weigh(losses), expected["total"], atol=1e-5)


def test_training_outputs_and_gradients(recorded, model):
    expected = recorded["train"]
    predictions, _, losses = training_losses(recorded, model, "train")
    for layer in range(2):
        close(predictions.logits[layer], expected["outputs"]["logits"][layer])
        close(predictions.boxes[layer], expected["outputs"]["boxes"][layer], atol=5e-6)
        close(predictions.denoising_logits[layer], expected["outputs"]["dn_logits"][layer])
        close(predictions.denoising_boxes[layer], expected["outputs"]["dn_boxes"][layer], atol=5e-6)
    model.zero_grad()
    model.weigh(losses).backward()
    names = expected["grad_norm"]["names"].split("\n")
    ours = convert_dino_gradients(model, names)
    for name, value in zip(names, expected["grad_norm"]["values"], strict=True):
        assert_close(ours[name], value, rtol=2e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def convert_dino_gradients(model, names):
    """Return the gradient norm of each official parameter, computed from ours."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    norms = {}
    for name in names:
        ours = list(convert_dino_state_dict(_one(name)))
        norms[name] = torch.cat([gradients[n].flatten() for n in ours]).norm()
    return norms


def _one(name):
    """A state dict with one entry (and the original of a shared head), enough to ask for the new name."""
    rows = torch.zeros(3)
    parts = name.split("embed.")
    if len(parts) == 2 and parts[1][0].isdigit():
        head = "class_embed" if "class" in name else "bbox_embed"
        return {f"{head}.0.{name.split('embed.')[1].split('.', 1)[1]}": rows}
    return {name: rows}


def test_trained_parameters(recorded, model):
    """The frozen part of the backbone (stem and first layer) is the same as in official DINO."""
    wanted = {
        new for name in recorded["train"]["requires_grad"].split("\n") for new in convert_dino_state_dict(_one(name))
    }
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == wanted
