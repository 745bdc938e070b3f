import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from bad_inputs.folders import detector
from tiny import tiny_batch, tiny_config, tiny_model
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from semidetr_hf import SemiDetrForObjectDetection, SemiDetrImageProcessor, export
from semidetr_hf.cli import main

Capture = pytest.CaptureFixture[str]
# The first test waits for the export, half a minute on a free processor core and minutes on a busy one.
pytestmark = pytest.mark.timeout(900)


class Exported(NamedTuple):
    """A folder of exported files, the detector that was exported, its folder, and what the command said."""

    folder: Path
    model: SemiDetrForObjectDetection
    saved: Path
    printed: str
    status: int


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    folder = tmp_path_factory.mktemp("export")
    backbone = tiny_config().backbone_config.to_dict() | {"out_features": ["stage4"], "out_indices": [4]}
    # Two levels, one of them beyond the backbone, and one layer of each kind: tracing shapes takes time.
    model = tiny_model(
        backbone_config=backbone,
        num_feature_levels=2,
        encoder_layers=1,
        decoder_layers=1,
        category_ids=[3, 5, 7, 11, 13],
    )
    model.save_pretrained(folder / "best")
    SemiDetrImageProcessor(nms_iou=0.6).save_pretrained(folder / "best")
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("typer.echo", lambda text, **_: lines.append(text))
        arguments = ["export", str(folder / "best"), "--output", str(folder / "out"), "--format", "both", "--int8"]
        status = main(["-q", *arguments])
    return Exported(folder / "out", model, folder / "best", "\n".join(lines), status)


@pytest.mark.slow
def test_command_writes_what_agrees_and_tells_the_differences(exported: Exported) -> None:
    assert exported.status == 0
    names = ["model.onnx", "model.pt2", "model_int8.onnx"]
    assert sorted(path.name for path in exported.folder.iterdir()) == [*names, "preprocessing.json"]
    lines = exported.printed.splitlines()
    assert [Path(line.partition(":")[0]).name for line in lines] == names
    assert all("do not use" not in line for line in lines)
    differences = [float(line.rpartition(" ")[2]) for line in lines]
    assert max(differences[:2]) < 1e-5
    assert 0 < differences[2] < 5  # 8 bits do something, and not anything


@pytest.mark.slow
@pytest.mark.parametrize(("num_images", "size"), [(1, (96, 96)), (1, (250, 97)), (2, (101, 196)), (3, (128, 160))])
def test_any_batch_and_size_agrees(exported: Exported, num_images: int, size: tuple[int, int]) -> None:
    opened = export.open_exported(exported.folder / "model.onnx")
    pixel_values, pixel_mask, _ = tiny_batch(num_images, size)
    with torch.no_grad():
        expected = exported.model(pixel_values, pixel_mask)
    logits, boxes = opened(pixel_values, pixel_mask)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes, expected.pred_boxes, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_preprocessing_says_what_the_processor_does(exported: Exported) -> None:
    written = json.loads((exported.folder / "preprocessing.json").read_text())
    processor = AutoImageProcessor.from_pretrained(exported.saved)
    assert written["inputs"]["smallest_edge"] == 96
    assert written["size"] == dict(processor.size)
    assert (written["image_mean"], written["image_std"]) == (list(processor.image_mean), list(processor.image_std))
    assert (written["resample"], written["rescale_factor"]) == ("bilinear", pytest.approx(1 / 255))
    assert (written["nms_iou"], written["nms_min_score"], written["max_detections"]) == (0.6, 0.01, 100)
    assert written["id2label"] == {str(i): f"class {i}" for i in range(5)}
    assert written["category_ids"] == [3, 5, 7, 11, 13]


@pytest.mark.slow
def test_check_finds_other_weights(exported: Exported) -> None:
    other = AutoModelForObjectDetection.from_pretrained(exported.saved).eval()
    assert export.check(other, exported.folder / "model.onnx", 96).difference <= export.TOLERANCE
    with torch.no_grad():
        other.class_head.bias[0] += 2 * export.TOLERANCE
    found = export.check(other, exported.folder / "model.onnx", 96)
    assert found.difference == pytest.approx(2 * export.TOLERANCE, rel=0.05)
    assert found.megabytes == pytest.approx((exported.folder / "model.onnx").stat().st_size / 1e6)


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_a_difference_is_status_1(difference: float, tmp_path: Path, monkeypatch, capsys: Capture) -> None:
    files = [
        export.ExportedFile(tmp_path / "model.onnx", 1.0, difference),
        export.ExportedFile(tmp_path / "model_int8.onnx", 1.0, 0.5),
    ]
    monkeypatch.setattr(export, "export_detector", lambda *_, **__: files)
    assert main(["export", str(detector(tmp_path)), "--output", str(tmp_path / "out")]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert "model.onnx" in first and first.endswith("do not use this file")
    assert second.endswith("largest difference 0.5")


def test_smallest_edge_has_room_for_all_queries() -> None:
    assert export.smallest_edge(tiny_model()) == 96
    # 160 / 8, / 16, / 32 and / 64: 400 + 100 + 25 + 9 tokens.
    assert export.smallest_edge(tiny_model(num_queries=534)) == 160
    assert export.smallest_edge(tiny_model(num_queries=535)) == 192


def test_noise_is_padded_with_zeros_at_the_right_and_at_the_bottom() -> None:
    pixel_values, pixel_mask = export.noise_batch([[3, 5], [4, 2]], torch.Generator().manual_seed(0))
    assert pixel_values.shape == (2, 3, 4, 5)
    assert pixel_mask[0].tolist() == [[1] * 5] * 3 + [[0] * 5]
    assert pixel_mask[1].tolist() == [[1, 1, 0, 0, 0]] * 4
    assert torch.equal(pixel_values != 0, pixel_mask[:, None].bool().expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "torch", "--int8"], "int8 is written as ONNX only"),
        (["--format", "torch", "--output", "FILE"], "config.json: a file; give a folder"),
        (["--format", "caffe"], "'--format'"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(flags: list[str], message: str, tmp_path: Path, capsys: Capture) -> None:
    model = detector(tmp_path)
    flags = [str(model / "config.json") if flag == "FILE" else flag for flag in flags]
    assert main(["export", str(model), "--output", str(tmp_path / "out"), *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_no_detector_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    assert main(["export", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "no folder with the config.json" in capsys.readouterr().err


def test_another_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Linear is not a detector of this package"):
        export.export_detector(torch.nn.Linear(1, 1), SemiDetrImageProcessor(), tmp_path)


def test_a_missing_library_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ValueError, match=r"ONNX needs onnxscript; install: pip install 'semidetr-hf\[export\]'"):
        export.export_detector(tiny_model(), SemiDetrImageProcessor(), tmp_path)


def test_a_file_is_replaced_only_when_it_is_whole(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("before")

    def fail(_: object, target: Path) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(OSError, match=r"model\.pt2: cannot be written .*make room"):
        export._write_network(object(), path, "torch")  # type: ignore[arg-type]
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.pt2", "before")]
