import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import configure

from semidetr_hf.report.run_folder import Phase, changed_settings, phases_of, read_run, uses_unlabeled


def write_plain_run(folder: Path, rows: list[dict], **parts: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    configure(folder, **parts).save(folder / "config.yaml")
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run in this folder.*give the output_dir of a training"):
        read_run(tmp_path)


def test_what_a_training_is_writing_at_the_moment_is_not_read(tmp_path: Path) -> None:
    folder = write_plain_run(tmp_path, [{"step": 1, "loss": 2.0}])
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    run = read_run(folder)
    assert run.log == [{"step": 1, "loss": 2.0}]
    assert (folder / "log.jsonl").read_text().endswith('{"step": 2, "lo')
    assert run.resources == [] and run.result is None and run.baseline is None and run.networks == {}


@pytest.mark.parametrize(
    ("line", "message"), [("{oops}", "line 2: not JSON"), ('{"loss": 1}', "line 2: has no `step`")]
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    folder = write_plain_run(tmp_path, [{"step": 1}])
    with (folder / "log.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=f"log.jsonl, {message}.*mend or delete the line"):
        read_run(folder)


def test_broken_settings_are_named_with_their_file(tmp_path: Path) -> None:
    folder = write_plain_run(tmp_path, [])
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("fold: 1", "fold: 0"))
    with pytest.raises(ValueError, match=r"config\.yaml: fold=0"):
        read_run(folder)


def test_the_supervised_run_is_found_inside_or_where_it_was_reused_from(tmp_path: Path) -> None:
    inside = write_plain_run(tmp_path / "run", [])
    write_plain_run(tmp_path / "run" / "supervised", [{"step": 3, "loss": 1.0}])
    baseline = read_run(inside).baseline
    assert baseline is not None and baseline.last_step == 3 and baseline.baseline is None
    elsewhere = tmp_path / "run" / "supervised"
    other = write_plain_run(tmp_path / "other", [], recipe={"baseline": str(elsewhere)})
    found = read_run(other).baseline
    assert found is not None and found.folder == elsewhere


def test_what_a_run_warned_of_is_collected(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss": 1.0, "skipped_steps": 1},
        {"step": 2, "event": "the teacher collapsed"},
        {"step": 3, "loss": 1.0, "skipped_steps": 4, "unreadable_images": 2},
    ]
    run = read_run(write_plain_run(tmp_path, rows, schedule={"num_steps": 9}))
    assert run.events == [
        "step 2: the teacher collapsed",
        "4 optimizer steps were left out, since a loss or gradient was not finite",
        "2 training images could not be read; others were taken instead",
        "the log ends at step 3 of 9",
    ]


def test_settings_that_were_chosen_are_listed_with_their_defaults(tmp_path: Path) -> None:
    config = configure(tmp_path, schedule={"num_steps": 7}, run={"trackers": ["tensorboard"]})
    rows = {field: (value, default) for field, value, default in changed_settings(config)}
    assert rows["schedule.num_steps"] == ("7", "120000")
    assert rows["data.labeled"] == ("x", "")
    assert rows["run.trackers"] == ("tensorboard", "none")
    assert "optimizer.weight_decay" not in rows


def test_phases_follow_the_schedule(tmp_path: Path) -> None:
    config = configure(tmp_path, schedule={"num_steps": 10, "burn_in_steps": 3, "one_to_many_steps": 5})
    burn_in, first, second = Phase("burn-in", 0, 3), Phase("one-to-many", 3, 5), Phase("one-to-one", 5, 10)
    assert phases_of(config, has_unlabeled=True) == [burn_in, first, second]
    assert phases_of(config, has_unlabeled=False) == [Phase("one-to-many", 0, 5), second]
    short = replace(config, schedule=replace(config.schedule, one_to_many_steps=2))
    assert phases_of(short, has_unlabeled=True) == [burn_in, Phase("one-to-one", 3, 10)]


def test_a_run_uses_unlabeled_images_only_if_it_has_some_and_they_count(tmp_path: Path) -> None:
    assert not uses_unlabeled(configure(tmp_path))
    assert uses_unlabeled(configure(tmp_path, data={"unlabeled": "folder"}))
    assert uses_unlabeled(configure(tmp_path, data={"label_fraction": 0.1}))
    weightless = {"unsupervised_weight": 0.0}
    assert not uses_unlabeled(configure(tmp_path, data={"unlabeled": "folder"}, schedule=weightless))
