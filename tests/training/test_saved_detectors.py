"""Saved detectors: whole or not there, and named when they do not load."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tiny import tiny_model
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from semidetr_hf import SemiDetrForObjectDetection, SemiDetrImageProcessor
from semidetr_hf.training.saved_detectors import reading_detector, save_detector, writing


def processor(nms_iou: float | None = None) -> SemiDetrImageProcessor:
    return SemiDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 64}, nms_iou=nms_iou)


def content(folder: Path) -> torch.Tensor:
    return AutoModelForObjectDetection.from_pretrained(folder).class_head.weight


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_detector(tiny_model(), processor(), tmp_path / "best")
    return tmp_path / "best"


# ---- save_detector


@pytest.mark.parametrize("nms_iou", [None, 0.6])
def test_a_saved_folder_holds_weights_code_and_whether_duplicates_are_removed(tmp_path: Path, nms_iou) -> None:
    model = tiny_model()
    save_detector(model, processor(nms_iou), tmp_path / "runs" / "best")
    folder = tmp_path / "runs" / "best"
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_semidetr.py"} <= {
        path.name for path in folder.iterdir()
    }
    assert json.loads((folder / "preprocessor_config.json").read_text()).get("nms_iou") == nms_iou
    assert AutoImageProcessor.from_pretrained(folder).nms_iou == nms_iou
    assert torch.equal(content(folder), model.class_head.weight)


def test_a_second_save_replaces_the_first_and_leaves_nothing_beside_it(saved: Path) -> None:
    (saved / "stale.txt").write_text("of the first save")
    second = tiny_model(seed=1)
    save_detector(second, processor(), saved)
    assert [path.name for path in saved.parent.iterdir()] == ["best"]
    assert not (saved / "stale.txt").exists()
    assert torch.equal(content(saved), second.class_head.weight)


def test_a_save_that_fails_keeps_the_earlier_one(saved: Path, monkeypatch) -> None:
    before = content(saved)

    def fail(*_args, **_options):
        raise OSError("no space left")

    monkeypatch.setattr(SemiDetrImageProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space left"):
        save_detector(tiny_model(seed=1), processor(), saved)
    assert torch.equal(content(saved), before)


def test_what_a_crash_between_two_renames_set_aside_is_put_back(saved: Path, monkeypatch) -> None:
    before = content(saved)
    saved.rename(saved.with_name(".best-previous"))

    def fail(*_args, **_options):
        raise OSError("no space left")

    monkeypatch.setattr(SemiDetrForObjectDetection, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space left"):
        save_detector(tiny_model(seed=1), processor(), saved)
    assert torch.equal(content(saved), before)


def test_leftovers_of_a_crash_do_not_reach_the_next_save(saved: Path) -> None:
    shutil.copytree(saved, saved.with_name(".best-unfinished"))
    (saved.with_name(".best-unfinished") / "stale.txt").write_text("of a crash")
    save_detector(tiny_model(seed=1), processor(), saved)
    assert not (saved / "stale.txt").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["best"]


# ---- reading_detector


def read(folder: Path) -> SemiDetrForObjectDetection:
    with reading_detector("init_from", folder):
        return SemiDetrForObjectDetection.from_pretrained(folder)


def test_a_sound_folder_is_read(saved: Path) -> None:
    assert torch.equal(read(saved).class_head.weight, tiny_model().class_head.weight)


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_fields_that_do_not_fit_together_are_a_value_error(saved: Path) -> None:
    # transformers raises its own kind of error here, which is no ValueError.
    change_config(saved, encoder_attention_heads=5)
    with pytest.raises(ValueError, match=r"d_model = 32 is not divisible by encoder_attention_heads = 5") as caught:
        read(saved)
    assert str(caught.value).startswith(f"init_from={str(saved)!r}: ")


def test_a_field_of_the_wrong_type_is_a_value_error(saved: Path) -> None:
    change_config(saved, num_queries="many")
    with pytest.raises(ValueError, match="num_queries") as caught:
        read(saved)
    assert str(saved) in str(caught.value)


def test_weights_that_are_cut_off_are_a_value_error(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="init_from=") as caught:
        read(saved)
    assert str(saved) in str(caught.value)


def test_weights_of_another_width_are_a_value_error(saved: Path) -> None:
    change_config(saved, d_model=64)
    with pytest.raises(ValueError, match="init_from="):
        read(saved)


def test_a_folder_without_a_detector_is_named_before_anything_is_read(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="--model='.*': no folder with the config.json of a saved detector"),
        reading_detector("--model", tmp_path),
    ):
        raise AssertionError("the block ran")


def test_weights_that_are_not_there_are_a_value_error(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="init_from=.*model.safetensors"):
        read(saved)


# ---- writing


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space\nleft on device"),
        RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/3: No space left on device"),
    ],
)
def test_what_cannot_be_written_names_place_reason_and_way_out(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "nowhere" / "best"
    with pytest.raises(OSError) as caught, writing(target, "make room"):
        raise error
    message = str(caught.value)
    assert message.startswith(f"{target}: cannot be written (")
    assert re.search(r"left on device, \d+ MB are free there\); make room$", message)
    assert "\n" not in message
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("a shape does not fit"), ValueError("no number"), KeyError("name")])
def test_errors_that_are_no_matter_of_writing_keep_their_kind(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, writing(tmp_path, "make room"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), NotImplementedError("no such kernel")]
)
def test_errors_that_have_nothing_to_do_with_the_disk_keep_their_kind(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, writing(tmp_path, "make room"):
        raise error
    assert caught.value is error
