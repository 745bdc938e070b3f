"""Every example does what its docstring says, on a few small images."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from example_modules import EXAMPLES, load_example
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import DigitsPaths, write_digits_dataset
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.evaluation import evaluate
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.setup import read_yaml

FLAGS = (
    "--label_fraction 0.5 --size nano --backbone_weights random --short_edges 64 --long_edge 64 --num_steps 2 "
    "--labeled_batch_size 2 --unlabeled_batch_size 2 --num_workers 0 --cpu --log_every 1"
).split()


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> DigitsPaths:
    folder = tmp_path_factory.mktemp("data") / "digits"
    return write_digits_dataset(folder, num_train=6, num_val=2, image_size=64)


@pytest.fixture(scope="module")
def run(digits: DigitsPaths, tmp_path_factory) -> Path:
    """The output folder of two semi-supervised steps."""
    output = tmp_path_factory.mktemp("runs") / "first"
    data = ["--labeled", str(digits.train_json), "--val", str(digits.val_json)]
    assert load_example("train_ssod").main([*data, *FLAGS, "--output_dir", str(output)]) == 0
    return output


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_head_of_every_example(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# /// script\n")
    docstring = load_example(path.stem).__doc__ or ""
    assert f"examples/{path.name}" in docstring


def test_train_ssod_makes_its_steps_and_leaves_what_it_promises(run: Path) -> None:
    steps = [row["step"] for row in JsonlLog(run / "log.jsonl").rows() if "loss" in row]
    assert steps == [1, 2]
    assert sorted(path.name for path in run.iterdir()) == ["best", "config.yaml", "log.jsonl", "student", "teacher"]
    model = AutoModelForObjectDetection.from_pretrained(run / "best")
    assert model.config.id2label == {i: str(i) for i in range(10)}
    assert model.config.label2id == {str(i): i for i in range(10)}
    assert model.config.category_ids == list(range(1, 11))
    processor = AutoImageProcessor.from_pretrained(run / "best")
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (64, 64)


def test_train_ssod_goes_on_from_a_config_file_with_flags_on_top(run: Path, tmp_path: Path, capsys) -> None:
    flags = ["--config", str(run / "config.yaml"), "--num_steps", "1", "--no_mean_std_filter"]
    flags += ["--init_from", str(run / "teacher"), "--output_dir", str(tmp_path / "second")]
    assert load_example("train_ssod").main(flags) == 0
    first, second = (
        TrainingConfig.from_dict(read_yaml(folder / "config.yaml")) for folder in (run, tmp_path / "second")
    )
    assert first.data == second.data
    assert (second.schedule.num_steps, second.pseudo_labels.mean_std_filter) == (1, False)
    table = capsys.readouterr().out
    for word in ("AP50", "student", "teacher", "best"):
        assert word in table


def test_train_ssod_as_a_program(digits: DigitsPaths, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "train_ssod.py"), "--labeled", str(digits.train_json), *FLAGS]
    command += ["--num_steps", "1", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "teacher" / "model.safetensors").is_file()
    # Without `val` nothing is evaluated and nothing is best.
    assert not (tmp_path / "out" / "best").exists()
    refused = subprocess.run(
        [*command, "--ema_momentum", "2"], capture_output=True, text=True, timeout=120, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr == "train_ssod.py: error: ema_momentum=2.0: must be from 0, below 1\n"


def test_predict_writes_original_category_ids(run: Path, digits: DigitsPaths, tmp_path: Path, capsys) -> None:
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    picture = sorted(digits.val_images.iterdir())[0]
    shutil.copy(picture, images / "a.jpg")
    Image.open(picture).convert("L").resize((90, 50)).save(images / "more" / "gray.png")
    (images / "broken.jpg").write_bytes(b"no picture")
    flags = ["--model", str(run / "best"), "--images", str(images), "--output", str(tmp_path / "found")]
    assert load_example("predict").main([*flags, "--threshold", "0", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert "2 images, 1 unreadable" in captured.out
    assert "broken.jpg" in captured.err

    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert {entry["file_name"] for entry in found} == {"a.jpg", "more/gray.png"}
    model = AutoModelForObjectDetection.from_pretrained(run / "best")
    processor = AutoImageProcessor.from_pretrained(run / "best")
    with Image.open(images / "a.jpg") as image:
        outputs = model(**processor(images=image, return_tensors="pt"))
        [expected] = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(64, 64)])
    of_first = [entry for entry in found if entry["file_name"] == "a.jpg"]
    # The categories of the digits have the ids 1..10 for the labels 0..9.
    assert [entry["category_id"] for entry in of_first] == (expected["labels"] + 1).tolist()
    assert [entry["score"] for entry in of_first] == pytest.approx(expected["scores"].tolist(), abs=1e-6)
    with Image.open(tmp_path / "found" / "more" / "gray.png.png") as drawn:
        # 50 * 6 is the first multiple of at least 256, so that labels are readable.
        assert drawn.size == (540, 300)


def test_predict_needs_images_and_a_detector(run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    for model, images, culprit in (
        (run / "best", tmp_path / "empty", "no image found"),
        (tmp_path, run, "config.json"),
    ):
        flags = ["--model", str(model), "--images", str(images), "--output", str(tmp_path / "found")]
        assert load_example("predict").main(flags) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert culprit in line


def test_evaluate_prints_the_twelve_numbers_and_every_class(
    run: Path, digits: DigitsPaths, tmp_path: Path, capsys
) -> None:
    flags = ["--model", str(run / "best"), "--data", str(digits.val_json), "--cpu"]
    assert load_example("evaluate").main([*flags, "--output", str(tmp_path / "metrics.json")]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  "))
    accelerator = Accelerator(cpu=True)
    metrics, _ = evaluate(
        AutoModelForObjectDetection.from_pretrained(run / "best"),
        AutoImageProcessor.from_pretrained(run / "best"),
        CocoSource(digits.val_json),
        batch_size=1,
        accelerator=accelerator,
    )
    expected = metrics.to_dict()
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected
    per_class = expected.pop("per_class")
    assert len(expected) == 12
    assert len(per_class) == 10
    assert rows == {
        name: "no objects" if value is None else f"{value:.4f}" for name, value in (expected | per_class).items()
    }


def test_evaluate_refuses_other_categories(run: Path, digits: DigitsPaths, tmp_path: Path, capsys) -> None:
    document = json.loads(digits.val_json.read_text())
    document["categories"][0]["name"] = "zero"
    (tmp_path / "other.json").write_text(json.dumps(document))
    images = str(digits.val_images.parent.parent)
    flags = ["--model", str(run / "best"), "--data", str(tmp_path / "other.json"), "--images", images, "--cpu"]
    assert load_example("evaluate").main(flags) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "'zero'" in line


def test_train_supervised_on_coco_files(digits: DigitsPaths, tmp_path: Path, capsys) -> None:
    flags = ["--train_json", str(digits.train_json), "--val_json", str(digits.val_json), "--max_steps", "2"]
    flags += ["--image_size", "64", "--batch_size", "2", "--output_dir", str(tmp_path / "out")]
    assert load_example("train_supervised").main(flags) == 0
    assert re.search(r"^AP [01]\.\d{3}, AP50 [01]\.\d{3}, AP75", capsys.readouterr().out, re.MULTILINE)
    model, report = AutoModelForObjectDetection.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.category_ids == list(range(1, 11))


@pytest.mark.parametrize(
    ("flags", "culprits"),
    [
        ("--train_json {folder}/nope.json", ["nope.json", "no such COCO json"]),
        ("--train_json {folder}/text.json", ["text.json", "not a json file"]),
        ("--digits 0", ["num_train", "0"]),
    ],
)
def test_train_supervised_names_what_is_wrong(tmp_path: Path, capsys, flags: str, culprits: list[str]) -> None:
    (tmp_path / "text.json").write_text("images: 3")
    arguments = [*flags.format(folder=tmp_path).split(), "--output_dir", str(tmp_path / "out")]
    assert load_example("train_supervised").main(arguments) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("train_supervised.py: error: ")
    assert all(culprit in line for culprit in culprits)


def test_train_supervised_learns(tmp_path: Path) -> None:
    example = load_example("train_supervised")
    flags = ["--digits", "2", "--max_steps", "20", "--image_size", "64", "--output_dir", str(tmp_path)]
    losses = example.train(example.parse_args(flags)).losses
    # 10 means over 2 steps each; untrained about 30.
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_train_supervised_memorizes_eight_scenes(tmp_path: Path) -> None:
    example = load_example("train_supervised")
    flags = ["--digits", "8", "--output_dir", str(tmp_path)]
    assert example.train(example.parse_args(flags)).metrics.ap > 0.9
