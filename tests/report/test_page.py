import json
import re
from pathlib import Path

import pytest
from run_folders import run_config, write_run
from small_runs import build, forget_accelerator

from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.report import page
from semidetr_hf.report.page import write_report
from semidetr_hf.training.setup import open_sources


def visible(text: str) -> str:
    """Return what is written on a page, without markup, styles and scripts."""
    text = re.sub(r"<(style|script).*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def addresses(text: str) -> list[str]:
    """Return everything that a browser could fetch."""
    found = re.findall(r"""(?:src|href|srcset|action|data)=["']([^"']*)""", text) + re.findall(r"url\(([^)]*)\)", text)
    return [address for address in found if not address.startswith(("#", "data:"))]


@pytest.mark.slow
def test_a_run_that_was_really_made_is_reported(tmp_path: Path, digits: DigitsPaths) -> None:
    config = run_config(tmp_path / "run", digits, run={"instruments": True, "eval_every": 3})
    build(config, **open_sources(config)._asdict()).train()
    forget_accelerator()
    path = write_report(tmp_path / "run", num_pictures=2)
    assert path == tmp_path / "run" / "report.html"
    text = path.read_text(encoding="utf-8")
    assert addresses(text) == []
    shown = visible(text)
    for title in ("Total loss", "Precision of pseudo-labels", "Pseudo-labels per unlabeled image", "Learning rate"):
        assert title in shown
    assert "not evaluated" not in shown and "No images were labeled" not in shown
    assert "burn-in: steps 0 to 2" in shown and "one-to-one: steps 4 to 6" in shown
    assert text.count('<figure class="photo">') == 2 * 2 + 2 + 2  # pairs of views, best, worst


def test_names_are_shown_as_they_are_and_never_as_markup(tmp_path: Path, digits: DigitsPaths) -> None:
    evil = "<script>alert('7')</script> & {{ 7 * 7 }}"
    for source in (digits.train_json, digits.val_json):
        content = json.loads(source.read_text())
        content["categories"][7]["name"] = evil
        (tmp_path / source.name).write_text(json.dumps(content))
    data = {"labeled": str(tmp_path / "train.json"), "val": str(tmp_path / "val.json")}
    images = {"labeled_images": str(digits.train_json.parent), "val_images": str(digits.train_json.parent)}
    folder = write_run(run_config(tmp_path / "<i>run</i>", digits, data=data | images))
    text = write_report(folder, num_pictures=1).read_text(encoding="utf-8")
    assert "<script>alert" not in text and "<i>run" not in text
    assert "&lt;script&gt;alert(&#39;7&#39;)&lt;/script&gt; &amp; {{ 7 * 7 }}" in text


def test_without_the_images_the_rest_is_shown_and_the_reason(tmp_path: Path, digits: DigitsPaths) -> None:
    config = run_config(tmp_path / "run", digits, data={"labeled": str(tmp_path / "gone.json"), "val": None})
    shown = visible(write_report(write_run(config)).read_text(encoding="utf-8"))
    reason = f"the images of the run cannot be opened: {tmp_path / 'gone.json'}"
    assert shown.count(reason) == 4  # in the warnings, the classes, the pseudo-labels and the images
    assert "Total loss" in shown and "kept: teacher" in shown


def test_each_thing_that_is_missing_is_said(tmp_path: Path, digits: DigitsPaths) -> None:
    bare = write_run(run_config(tmp_path / "bare", digits), log=[], networks=())
    shown = visible(write_report(bare).read_text(encoding="utf-8"))
    assert f"not evaluated: {bare / 'best'}: no saved network is there" in shown
    assert f"No images were labeled: {bare}: no saved network is there" in shown
    assert "The log has no numbers yet" in shown and "The run has no evaluation yet" in shown
    assert "the log ends at step 0 of 6" in shown
    no_val = write_run(run_config(tmp_path / "no_val", digits, data={"val": None}), networks=("teacher",))
    assert "not evaluated: the run has no validation images" in visible(write_report(no_val).read_text())


def test_a_broken_network_does_not_keep_the_rest_from_being_shown(tmp_path: Path, digits: DigitsPaths) -> None:
    folder = write_run(run_config(tmp_path / "run", digits))
    (folder / "best" / "model.safetensors").write_bytes(b"torn")
    shown = visible(write_report(folder, num_pictures=1).read_text(encoding="utf-8"))
    assert "The kept network was not evaluated: best=" in shown
    assert "weak view" in shown


def test_a_supervised_run_has_no_section_about_pseudo_labels(tmp_path: Path, digits: DigitsPaths) -> None:
    config = run_config(tmp_path / "run", digits, data={"label_fraction": None})
    text = write_report(write_run(config, networks=()), evaluates=False).read_text(encoding="utf-8")
    assert 'id="pseudo-labels"' not in text and "burn-in" not in visible(text)


def test_a_result_without_a_gain_says_why_that_may_be(tmp_path: Path, digits: DigitsPaths) -> None:
    folder = write_run(run_config(tmp_path / "run", digits), networks=())
    score = {"network": "teacher", "step": 6, "ap": 0.4, "ap50": 0.6, "ap75": 0.3}
    scores = {"supervised": score, "teacher": score | {"ap": 0.3}}
    result = {"scores": scores, "kept": "supervised", "gain": -0.1, "reasons": ["few pseudo-labels"]}
    (folder / "result.json").write_text(json.dumps(result))
    shown = visible(write_report(folder, evaluates=False).read_text(encoding="utf-8"))
    assert "kept: supervised 0.400" in shown and "gain over supervised -0.100" in shown
    assert "did not help. It may be that: few pseudo-labels" in shown


def test_wrong_arguments_are_refused(tmp_path: Path, digits: DigitsPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(run_config(tmp_path / "run", digits), networks=())
    with pytest.raises(ValueError, match="num_pictures=-1: must be 0 or more"):
        write_report(folder, num_pictures=-1)

    class TwoProcesses:
        num_processes = 2

    monkeypatch.setattr(page, "Accelerator", lambda **_: TwoProcesses())
    with pytest.raises(ValueError, match="one process writes a report, not 2; start it without a launcher"):
        write_report(folder)
    assert not (folder / "report.html").exists()
