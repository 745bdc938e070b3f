"""Every example does what its docstring says, on a few small images."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import Accelerator
from example_modules import EXAMPLES, load_example
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import DigitsPaths, write_digits_dataset
from semidetr_hf.training import presets
from semidetr_hf.training.config import TrainingConfig
from semidetr_hf.training.config_files import read_yaml
from semidetr_hf.training.evaluation import evaluate
from semidetr_hf.training.metrics import JsonlLog
from semidetr_hf.training.presets import method

FLAGS = (
    "--label_fraction 0.5 --size nano --backbone_weights random --short_edges 64 --long_edge 64 --num_steps 2 "
    "--labeled_batch_size 2 --unlabeled_batch_size 2 --num_workers 0 --cpu --log_every 1 --baseline none --no_estimate"
).split()


# Flag of every program for what it writes.
OUTPUT = {"train_ssod": ["--output_dir"], "evaluate": ["--output"], "predict": ["--output"]}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> DigitsPaths:
    folder = tmp_path_factory.mktemp("data") / "digits"
    return write_digits_dataset(folder, num_train=6, num_val=2, image_size=64)


@pytest.fixture(scope="module")
def run(digits: DigitsPaths, tmp_path_factory) -> Path:
    """The output folder of two semi-supervised steps, and of two supervised ones beside them."""
    output = tmp_path_factory.mktemp("runs") / "first"
    data = ["--labeled", str(digits.train_json), "--val", str(digits.val_json)]
    flags = [*FLAGS, "--baseline", "train", "--estimate", "yes"]
    assert load_example("train_ssod").main([*data, *flags, "--output_dir", str(output)]) == 0
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
    folders = ["best", "checkpoints", "student", "supervised", "teacher"]
    files = ["config.yaml", "data.json", "log.jsonl", "recipe.yaml", "report.html", "resources.jsonl", "result.json"]
    assert sorted(path.name for path in run.iterdir()) == sorted(folders + files)
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


def test_train_ssod_with_the_method_of_the_released_code(digits: DigitsPaths, tmp_path: Path) -> None:
    data = ["--labeled", str(digits.train_json), "--val", str(digits.val_json), "--method", "reference"]
    flags = ["--consistency_copies", "2", "--output_dir", str(tmp_path / "out")]
    assert load_example("train_ssod").main([*data, *FLAGS, *flags]) == 0
    config = TrainingConfig.from_dict(read_yaml(tmp_path / "out" / "config.yaml"))
    expected = method("reference")
    expected["consistency"]["consistency_copies"] = 2
    written = config.to_dict()
    assert {section: {name: written[section][name] for name in part} for section, part in expected.items()} == expected
    evaluations = [row for row in JsonlLog(tmp_path / "out" / "log.jsonl").rows() if "teacher/ap" in row]
    # The released code evaluates the teacher alone.
    assert len(evaluations) == 1
    assert "student/ap" not in evaluations[0]
    assert AutoModelForObjectDetection.from_pretrained(tmp_path / "out" / "best").config.bbox_loss_coefficient == 10


def test_train_ssod_from_the_file_of_a_preset(digits: DigitsPaths, tmp_path: Path) -> None:
    preset = "coco_partial --percent 10 --fold 2 --method reference".split()
    files = ["--coco", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--save", str(tmp_path / "run.yaml")]
    assert presets.main([*preset, *files]) == 0
    # The images of the digits in place of those of COCO.
    flags = ["--config", str(tmp_path / "run.yaml"), "--labeled", str(digits.train_json)]
    flags += ["--labeled_images", str(digits.train_json.parent), "--val", str(digits.val_json)]
    flags += ["--val_images", str(digits.val_json.parent), "--one_to_many_steps", "1", *FLAGS]
    assert load_example("train_ssod").main(flags) == 0
    config = TrainingConfig.from_dict(read_yaml(tmp_path / "out" / "config.yaml"))
    assert (config.data.fold, config.data.label_fraction, config.schedule.num_steps) == (2, 0.5, 2)
    assert config.consistency.cost_threshold == "densest"


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
    shown = capsys.readouterr().out
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
    assert len(expected["per_class"]) == 10
    assert metrics.to_text() in shown


def write_voc(folder: Path, digits: DigitsPaths) -> Path:
    """Write the validation images of the digits as labelImg would, pictures with an XML file each."""
    folder.mkdir()
    document = json.loads(digits.val_json.read_text())
    names = {category["id"]: category["name"] for category in document["categories"]}
    for image in document["images"]:
        objects = ""
        for box in (box for box in document["annotations"] if box["image_id"] == image["id"]):
            x, y, width, height = box["bbox"]
            # Corners of VOC are pixels, counted from 1, and inclusive.
            corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax>"
            objects += f"<object><name>{names[box['category_id']]}</name><bndbox>{corners}</bndbox></object>"
        picture = digits.val_images / Path(image["file_name"]).name
        shutil.copy(picture, folder / picture.name)
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        xml = f"<annotation><filename>{picture.name}</filename>{size}{objects}</annotation>"
        (folder / picture.name).with_suffix(".xml").write_text(xml)
    return folder


def test_evaluate_reads_the_xml_files_of_voc_too(run: Path, digits: DigitsPaths, tmp_path: Path, capsys) -> None:
    results = []
    for data in (digits.val_json, write_voc(tmp_path / "voc", digits)):
        flags = ["--model", str(run / "best"), "--data", str(data), "--cpu"]
        code = load_example("evaluate").main([*flags, "--output", str(tmp_path / "metrics.json")])
        assert code == 0, capsys.readouterr().err
        results.append(json.loads((tmp_path / "metrics.json").read_text()))
    voc = results[1].pop("voc")
    assert results[0] == results[1]
    shown = capsys.readouterr().out
    assert shown.count("by the rules of Pascal VOC") == shown.count("eleven points of VOC2007") == 1
    assert voc["per_class_boxes"] == results[0]["per_class_boxes"]


def test_evaluate_on_xml_files_that_lack_a_class(run: Path, digits: DigitsPaths, tmp_path: Path, capsys) -> None:
    path = tmp_path / "voc" / "one.xml"
    path.parent.mkdir()
    shutil.copy(min(digits.val_images.iterdir()), path.with_suffix(".png"))
    width, height = Image.open(path.with_suffix(".png")).size
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    path.write_text(f"<annotation>{size}<object><name>7</name>{box}</object></annotation>")
    flags = ["--model", str(run / "best"), "--data", str(path.parent), "--cpu"]
    flags += ["--output", str(tmp_path / "metrics.json")]
    code, messages = load_example("evaluate").main(flags), capsys.readouterr().err
    assert code == 0, messages
    per_class = json.loads((tmp_path / "metrics.json").read_text())["per_class"]
    assert [name for name, value in per_class.items() if value is not None] == ["7"]
    path.write_text(path.read_text().replace("<name>7</name>", "<name>seven</name>"))
    assert load_example("evaluate").main(flags) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert str(path) in line and "'seven'" in line


def test_evaluate_refuses_a_bare_folder(run: Path, digits: DigitsPaths, capsys) -> None:
    flags = ["--model", str(run / "best"), "--data", str(digits.val_images), "--cpu"]
    assert load_example("evaluate").main(flags) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "a bare folder has no boxes" in line


def break_fields(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder_attention_heads": 7}))


def break_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")


def change_width(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"d_model": 64}))


@pytest.mark.parametrize("program", ["train_ssod", "evaluate", "predict"])
@pytest.mark.parametrize("damage", [break_fields, break_json, break_weights, change_width])
def test_a_broken_detector_is_one_line_in_every_program(
    run: Path, digits: DigitsPaths, tmp_path: Path, capsys, program: str, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(run / "best", tmp_path / "broken")
    damage(tmp_path / "broken")
    model = str(tmp_path / "broken")
    flags = {
        "train_ssod": ["--labeled", str(digits.train_json), *FLAGS, "--init_from", model],
        "evaluate": ["--data", str(digits.val_json), "--cpu", "--model", model],
        "predict": ["--images", str(digits.val_images), "--device", "cpu", "--model", model],
    }[program]
    assert load_example(program).main([*flags, *OUTPUT[program], str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"{program}.py: error: ")
    assert "broken" in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert not (tmp_path / "out").exists()


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
