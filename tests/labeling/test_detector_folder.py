from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from semidetr_hf.labeling import detector_folder as tested
from semidetr_hf.labeling.detector_folder import detector_folder


def test_a_folder_is_itself(tmp_path, monkeypatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert detector_folder("owner/name") == Path("owner/name")
    # Neither is an id of the Hub; that there is no such folder is said where the detector is loaded.
    assert detector_folder("./missing") == Path("missing")
    assert detector_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"


def test_an_id_is_fetched_without_code(monkeypatch) -> None:
    asked = {}
    monkeypatch.setattr(tested, "snapshot_download", lambda name, **kwargs: asked.update(kwargs) or f"/cache/{name}")
    assert detector_folder("some-owner/some-name") == Path("/cache/some-owner/some-name")
    assert asked == {"allow_patterns": ["*.json", "*.safetensors"]}


def test_without_a_network_it_is_one_line(monkeypatch) -> None:
    def refuse(*_args, **_kwargs):
        raise LocalEntryNotFoundError("cannot reach\nthe Hub")

    monkeypatch.setattr(tested, "snapshot_download", refuse)
    with pytest.raises(ConnectionError, match=r"^model='some-owner/some-name': no such folder, and .*reach the Hub"):
        detector_folder("some-owner/some-name")
