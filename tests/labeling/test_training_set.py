import pytest

from semidetr_hf.labeling.training_set import was_trained_on


def test_a_run_says_what_it_was_trained_on(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text(f"data:\n  labeled: {tmp_path / 'train.json'}\n")
    assert was_trained_on(tmp_path / "best", tmp_path / "x" / ".." / "train.json")
    assert not was_trained_on(tmp_path / "best", tmp_path / "val.json")
    assert not was_trained_on(tmp_path / "elsewhere" / "best", tmp_path / "train.json")


@pytest.mark.parametrize("text", ["", "- a list", "data: 3", "data: {}", "data: {labeled: 3}", "{", "a: b: c"])
def test_a_file_of_something_else_says_nothing(tmp_path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert not was_trained_on(tmp_path / "best", tmp_path / "train.json")
