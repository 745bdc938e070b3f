"""Uploads over real HTTP to a Hub on this machine, with failures on the way."""

from pathlib import Path

import pytest
from hub.hub_server import CUT, TOKEN, Hub

from semidetr_hf.hub import push


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in (("config.json", b"{}"), ("model.safetensors", b"weights"), ("sub/notes.txt", b"")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".hidden").write_text("stays at home")
    return tmp_path


def test_all_but_hidden_files_arrive_in_one_commit(hub: Hub, folder: Path) -> None:
    assert push(folder, "me/detector", message="First") == f"{hub.endpoint}/me/detector"
    repository = hub.repositories["me/detector"]
    assert repository.files == {"config.json": b"{}", "model.safetensors": b"weights", "sub/notes.txt": b""}
    assert [commit["message"] for commit in repository.commits] == ["First"]
    assert not repository.private
    assert len(hub.stored) == 1  # the weights went the way of large files


def test_a_name_without_owner_belongs_to_the_owner_of_the_token(hub: Hub, folder: Path) -> None:
    assert push(folder, "detector", private=True).endswith("/me/detector")
    assert hub.repositories["me/detector"].private


def test_what_is_there_is_not_sent_again(hub: Hub, folder: Path) -> None:
    push(folder, "me/detector")
    (folder / "config.json").write_text("{ }")
    push(folder, "me/detector")
    repository = hub.repositories["me/detector"]
    assert [commit["paths"] for commit in repository.commits[1:]] == [["config.json"]]
    push(folder, "me/detector")
    assert len(repository.commits) == 2
    assert len([request for request in hub.requests if request.startswith("PUT")]) == 1


@pytest.mark.parametrize(
    ("request_", "status"), [("preupload", 429), ("objects/batch", 500), ("PUT /lfs", 500), ("PUT /lfs", CUT)]
)
def test_what_passes_is_tried_again(hub: Hub, folder: Path, request_: str, status: int) -> None:
    hub.fail(request_, status, times=2)
    push(folder, "me/detector")
    assert len(hub.repositories["me/detector"].files) == 3
    assert len([request for request in hub.requests if request_ in request]) == 3


@pytest.mark.parametrize(
    ("request_", "status", "way_out"),
    [
        ("/preupload/", 401, "run `hf auth login`"),
        ("PUT /lfs", 403, "may not write there"),
        ("/commit/", 403, "may not write there"),
        ("/commit/", 409, "push again"),
        ("/preupload/", 429, "wait some minutes"),
        ("/commit/", 429, "wait some minutes"),
        ("repos/create", 500, "check the network"),
        ("objects/batch", 500, "check the network"),
        ("/commit/", 500, "check the network"),
        ("repos/create", CUT, "check the network"),
        ("PUT /lfs", CUT, "check the network"),
        ("/commit/", CUT, "check the network"),
    ],
)
def test_what_stays_is_one_line_with_the_way_out_and_leaves_no_half(
    hub: Hub, folder: Path, request_: str, status: int, way_out: str
) -> None:
    push(folder, "me/detector", message="Before")
    before = dict(hub.repositories["me/detector"].files)
    (folder / "model.safetensors").write_bytes(b"better weights")
    hub.fail(request_, status, times=99)
    with pytest.raises(ConnectionError) as raised:
        push(folder, "me/detector")
    message = str(raised.value)
    assert message.startswith("me/detector: not uploaded (")
    assert way_out in message
    assert "\n" not in message
    assert TOKEN not in message
    if status != CUT:
        assert str(status) in message
    assert hub.repositories["me/detector"].files == before
    # The same push again finishes it.
    hub.failures.clear()
    push(folder, "me/detector")
    assert hub.repositories["me/detector"].files["model.safetensors"] == b"better weights"


def test_a_wrong_token_a_missing_one_and_a_wrong_name_are_told(hub: Hub, folder: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="'my detector'"):
        push(folder, "my detector")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConnectionError, match="the token is not valid"):
        push(folder, "me/detector")
    monkeypatch.setattr("semidetr_hf.hub.upload.get_token", lambda: None)
    with pytest.raises(PermissionError, match="hf auth login"):
        push(folder, "me/detector")
    assert hub.repositories == {}
