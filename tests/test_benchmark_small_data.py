"""The benchmark of tens of labels: which runs are shared, what its table says, and the data it makes."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import draw_scene, load_material

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SIZE = 96


@pytest.fixture
def small_data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("small_data")


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("letters")


@pytest.fixture
def trap_scenes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("trap_scenes")


def record(folder: Path, arm: str, seed: int, ap: float, best: float) -> None:
    """Write the result of a run with 10 labeled scenes of 4,000."""
    evaluations = [{"step": 1, "ap": best, "ap50": best, "ap75": best}, {"step": 2, "ap": ap, "ap50": ap, "ap75": ap}]
    content = {"arm": arm, "percent": 0.25, "seed": seed, "teacher": evaluations[-1], "evaluations": evaluations}
    (folder / f"{arm}{seed}.json").write_text(json.dumps(content))


def test_gains_are_paired_with_the_best_evaluation_of_the_supervised_run(
    tmp_path: Path, small_data: ModuleType
) -> None:
    for seed, (supervised, best, ours) in enumerate([(0.10, 0.12, 0.15), (0.20, 0.20, 0.30)]):
        record(tmp_path, "supervised, warm start", seed, supervised, best)
        record(tmp_path, "small-data", seed, ours, ours)
    # 15 - 12 = 3 and 30 - 20 = 10; the supervised runs have no gain.
    rows = [line.split(" | ") for line in small_data.table(tmp_path).splitlines()[2:]]
    assert [row[1] for row in rows] == ["supervised, warm start", "small-data"]
    assert rows[1][4:] == ["+6.5", "+3.0", "0 1 |"] and rows[0][4:6] == ["", ""]
    assert rows[1][2] == "22.5 ± 10.6"


def test_arms_with_the_same_start_share_their_supervised_run(
    tmp_path: Path, small_data: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_data, "write_digits_dataset", lambda *args, **kwargs: None)
    options = ["--scenes", "10", "--seeds", "0", "1", "--work", str(tmp_path), "--results", str(tmp_path)]
    burn_ins, todo = small_data.plan(small_data.parse_args(options))
    names = [(arm.name, arm.seed) for arm, _, _ in todo]
    everywhere = [name for name in small_data.ARMS if not name.startswith("without")]
    assert {name for name, seed in names if seed == 1} == set(everywhere)
    assert {name for name, seed in names if seed == 0} == set(small_data.ARMS)
    # From scratch or from letters, labeled views plain or moved; the moved ones from scratch belong to a switch.
    starts = [Path(folder).name for folder in burn_ins]
    assert sorted(name for name in starts if name.endswith("seed1")) == [
        "letters_moved_10scenes_seed1",
        "letters_plain_10scenes_seed1",
        "scratch_plain_10scenes_seed1",
    ]
    assert len([name for name in starts if name.endswith("seed0")]) == 4
    for arm, config, _ in todo:
        assert config.schedule.num_steps == 300 and config.data.label_fraction == 10 / 4000
        assert config.model.init_from is not None and config.schedule.burn_in_steps == 0
        supervised = arm.name.startswith("supervised")
        assert (config.schedule.unsupervised_weight == 0) == supervised


def test_letters_are_a_data_set_of_their_own(tmp_path: Path, letters: ModuleType) -> None:
    source = CocoSource(letters.write_letters(tmp_path, num_scenes=5, image_size=SIZE, seed=1))
    assert len(source) == 5 and source.num_boxes > 0
    assert not set(source.category_names) & set("0123456789") and len(source.category_names) == 21
    for index in range(len(source)):
        sample = source[index]
        assert sample.image.size == (SIZE, SIZE) and len(sample.boxes_xyxy) > 0


def test_awkward_pictures_show_the_same_scenes(tmp_path: Path, trap_scenes: ModuleType) -> None:
    source = CocoSource(trap_scenes.write_trap_scenes(tmp_path, split="train", num_scenes=6, image_size=SIZE, seed=3))
    assert source.category_ids[:3] == (3, 10, 17) and source.class_counts[-1] == 0
    material, kinds = load_material("train"), []
    for index in range(6):
        with Image.open(source.path(index)) as stored:
            kinds.append((stored.mode, stored.getexif().get(trap_scenes.ORIENTATION, 1)))
        scene = draw_scene(material, SIZE, 4, np.random.default_rng((3, False, index)))
        sample = source[index]
        assert sample.boxes_xyxy.tolist() == [list(map(float, box)) for box in scene.boxes]
        ours, plain = (np.asarray(image.convert("L"), dtype=float) for image in (sample.image, scene.image))
        # JPEG changes a gray value by a few of 255; a picture that is turned the wrong way differs by dozens.
        assert abs(ours - plain).mean() < 8 < abs(np.rot90(ours) - plain).mean()
    assert [mode for mode, _ in kinds] == ["RGB", "L", "I;16", "CMYK", "RGBA", "RGB"]
    assert [orientation for _, orientation in kinds] == [1, 1, 1, 1, 1, 6]
