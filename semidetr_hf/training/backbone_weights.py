"""Weights that the backbone of a new detector starts from.

Source: the released code starts from a ResNet-50 trained on ImageNet, and freezes its batch normalization.
"""

import pickle
import re
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TimmBackbone


def load_backbone_weights(model: nn.Module, choice: str) -> str:
    """Fill the backbone of a detector with weights.

    Args:
        model: a detector with a transformers `TimmBackbone` at `model.model.backbone`; changed in place.
        choice: `imagenet` (downloaded by timm), `random` (changes nothing), or the path of a .safetensors or .pth file
            with the state dict of the timm model.

    Returns:
        One line for the log that says what was loaded.

    Raises:
        ValueError: if the model has no such backbone, or the weights are not those of this backbone; the message names
            the first keys or shapes that do not fit. The backbone is then as before.
        FileNotFoundError: if the file does not exist.
        ConnectionError: if the weights cannot be downloaded; the message names the ways out.
    """
    backbone = getattr(getattr(model, "model", None), "backbone", None)
    if not isinstance(backbone, TimmBackbone):
        raise ValueError(
            f"{type(model).__name__} has no TimmBackbone at model.backbone but {type(backbone).__name__}; "
            "use --backbone_weights random and load its weights on your own"
        )
    name = str(backbone.config.backbone)
    if choice == "random":
        return f"backbone {name}: random weights, as asked for"
    weights = _download(backbone) if choice == "imagenet" else _read(Path(choice))
    count = _fill(backbone._backbone, weights, name=name, choice=choice)
    return f"backbone {name}: {count} tensors loaded from {choice}"


def _download(backbone: TimmBackbone) -> dict[str, Tensor]:
    config = backbone.config
    try:
        pretrained = timm.create_model(
            str(config.backbone),
            pretrained=True,
            features_only=config.features_only,
            in_chans=config.num_channels,
            out_indices=config.out_indices,
        )
    # Whatever goes wrong on the way from the Hub (network, proxy, missing file, no weights of that name) ends here:
    # the errors of huggingface_hub, of its HTTP client and of timm share no narrower base class.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionError(
            f"no ImageNet weights for backbone {config.backbone}: {reason[:300]} -- connect to the Hub, give a local "
            "file (--backbone_weights FILE.safetensors), or train from scratch (--backbone_weights random)"
        ) from error
    return pretrained.state_dict()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"--backbone_weights {path}: no such file; give `imagenet`, `random` or a .safetensors or .pth file"
        )
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    # A damaged file raises whatever its bytes lead the parsers to: UnpicklingError, SafetensorError, even IndexError.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds other objects, which were not loaded since they could run code"
        raise ValueError(
            f"{path}: not a .safetensors file or a .pth file of plain tensors ({reason}); save "
            "`timm_model.state_dict()`"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path}: holds no state dict (names to tensors); save `timm_model.state_dict()`")
    return weights


def _fill(network: nn.Module, weights: dict[str, Tensor], *, name: str, choice: str) -> int:
    """Load weights after checking that names and shapes fit, and return how many tensors were loaded."""
    own = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    stages = {key.split(".")[0] for key in own}
    given = {_key_in_backbone(key, stages): value for key, value in weights.items()}
    # A whole classifier also has a head, and stages after the last one that a detector looks at: neither is an error.
    # A foreign tensor within one of our own stages is one: the file is of another model, such as a deeper ResNet.
    given = {
        key: value
        for key, value in given.items()
        if key.split(".")[0] in stages and not key.endswith("num_batches_tracked")
    }
    problems = {
        "missing": [key for key in own if key not in given],
        "too many": [key for key in given if key not in own],
        "of another shape": [key for key in own if key in given and own[key].shape != given[key].shape],
    }
    found = [f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in problems.items() if keys]
    if found:
        raise ValueError(
            f"weights {choice} do not fit backbone {name}: tensors {'; '.join(found)}; give weights of timm's {name}"
        )
    network.load_state_dict(given, strict=False)
    return len(given)


def _key_in_backbone(key: str, stages: set[str]) -> str:
    """Return the name in timm's feature extractor of a tensor of the classifier: `stages.0.x` -> `stages_0.x`."""
    return key if key.split(".")[0] in stages else re.sub(r"^([a-z]+)\.(\d+)\.", r"\1_\2.", key)
