from dataclasses import MISSING, replace
from pathlib import Path

from small_runs import configure

from semidetr_hf.training.changed_fields import changed_fields
from semidetr_hf.training.config import TrainingConfig


def test_only_what_differs_from_the_default_is_told(tmp_path: Path) -> None:
    plain = TrainingConfig.from_dict({"data": {"labeled": "x"}, "run": {"output_dir": "out"}})
    assert [*changed_fields(plain)] == [("data", "labeled", "x", MISSING), ("run", "output_dir", "out", MISSING)]
    changed = replace(plain, run=replace(plain.run, seed=3, trackers=["wandb"]))
    assert ("run", "seed", 3, 0) in changed_fields(changed)
    assert ("run", "trackers", ["wandb"], []) in changed_fields(changed)


def test_what_was_changed_makes_the_configuration_again(tmp_path: Path) -> None:
    config = configure(tmp_path)
    values: dict[str, dict[str, object]] = {}
    for part, field, value, _ in changed_fields(config):
        values.setdefault(part, {})[field] = value
    assert TrainingConfig.from_dict(values) == config
