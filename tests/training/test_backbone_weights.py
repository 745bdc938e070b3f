import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import TimmBackbone, TimmBackboneConfig

from semidetr_hf.training.backbone_weights import load_backbone_weights


class Detector(nn.Module):
    def __init__(self, name: str = "resnet10t", out_indices: tuple[int, ...] = (2, 3), freeze: bool = False) -> None:
        super().__init__()
        config = TimmBackboneConfig(backbone=name, out_indices=out_indices, freeze_batch_norm_2d=freeze)
        self.model = nn.Module()
        self.model.backbone = TimmBackbone(config)


def whole_classifier(name: str = "resnet10t") -> dict[str, torch.Tensor]:
    """Return the state dict of a timm classifier, filled with numbers no initialization gives."""
    state = timm.create_model(name, pretrained=False).state_dict()
    return {key: value.clone().fill_(0.125) if value.is_floating_point() else value for key, value in state.items()}


def assert_filled(detector: Detector) -> None:
    state = detector.model.backbone._backbone.state_dict()
    assert state
    for key, value in state.items():
        assert key.endswith("num_batches_tracked") or bool((value == 0.125).all()), key


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_classifier_file_fills_weights_and_normalization(tmp_path, suffix: str, freeze: bool) -> None:
    detector, path = Detector(freeze=freeze), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(whole_classifier(), path)
    else:
        save_file(whole_classifier(), path)
    line = load_backbone_weights(detector, str(path))
    # Everything but the counters of batch normalization, which a frozen one does not have.
    own = [key for key in detector.model.backbone._backbone.state_dict() if "num_batches" not in key]
    assert line == f"backbone resnet10t: {len(own)} tensors loaded from {path}"
    assert_filled(detector)


def test_names_of_flattened_stages_are_found(tmp_path) -> None:
    # timm's feature extractor calls ConvNeXt's `stages.0` `stages_0`.
    save_file(whole_classifier("convnext_atto"), tmp_path / "weights.safetensors")
    detector = Detector("convnext_atto", out_indices=(0, 1, 2))
    load_backbone_weights(detector, str(tmp_path / "weights.safetensors"))
    assert_filled(detector)


def test_random_changes_nothing_and_says_so() -> None:
    detector = Detector()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    assert load_backbone_weights(detector, "random") == "backbone resnet10t: random weights, as asked for"
    after = detector.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_imagenet_asks_timm_for_the_same_network(monkeypatch) -> None:
    asked = []
    create = timm.create_model

    def create_filled(name: str, **options):
        asked.append((name, options))
        network = create(name, **{**options, "pretrained": False})
        network.load_state_dict({key: torch.full_like(value, 0.125) for key, value in network.state_dict().items()})
        return network

    detector = Detector()
    monkeypatch.setattr(timm, "create_model", create_filled)
    line = load_backbone_weights(detector, "imagenet")
    assert line.startswith("backbone resnet10t: ")
    assert line.endswith(" tensors loaded from imagenet")
    assert_filled(detector)
    (name, options) = asked[0]
    assert name == "resnet10t"
    assert options == {"pretrained": True, "features_only": True, "in_chans": 3, "out_indices": [2, 3]}


def test_failed_download_is_never_silently_random(monkeypatch) -> None:
    def fail(*_args, **_options):
        raise OSError("cannot reach the Hub\n(proxy says no)")

    detector = Detector()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ConnectionError) as caught:
        load_backbone_weights(detector, "imagenet")
    message = str(caught.value)
    assert "resnet10t" in message
    assert "cannot reach the Hub (proxy says no)" in message
    assert "--backbone_weights random" in message
    assert "FILE.safetensors" in message
    assert "\n" not in message
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer2.0.conv1.weight"), r"1 missing \(layer2\.0\.conv1\.weight\)"),
        (
            lambda state: state.update({"layer2.9.conv1.weight": torch.zeros(1)}),
            r"1 too many \(layer2\.9\.conv1\.weight\)",
        ),
        (
            lambda state: state.update({"layer1.0.conv1.weight": torch.zeros(2, 2)}),
            r"1 of another shape \(layer1\.0\.conv1\.weight\)",
        ),
    ],
)
def test_weights_of_another_model_are_refused_and_change_nothing(tmp_path, change, message: str) -> None:
    state = whole_classifier()
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    detector = Detector()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_backbone_weights(detector, str(tmp_path / "weights.pth"))
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


def test_bad_files_are_named(tmp_path) -> None:
    detector = Detector()
    with pytest.raises(FileNotFoundError, match="imagnet: no such file; give `imagenet`"):
        load_backbone_weights(detector, "imagnet")
    for suffix in (".safetensors", ".pth"):
        path = tmp_path / f"broken{suffix}"
        path.write_bytes(b"this is no weight file")
        with pytest.raises(ValueError, match=rf"broken\{suffix}: not a \.safetensors file or"):
            load_backbone_weights(detector, str(path))
    torch.save({"state_dict": whole_classifier()}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match=r"nested\.pth: holds no state dict"):
        load_backbone_weights(detector, str(tmp_path / "nested.pth"))


def test_needs_a_timm_backbone() -> None:
    with pytest.raises(ValueError, match=r"Linear has no TimmBackbone at model\.backbone but NoneType"):
        load_backbone_weights(nn.Linear(1, 1), "random")
