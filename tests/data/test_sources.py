from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.folder import FolderSource
from semidetr_hf.data.sources import open_source


def test_the_door_chooses_the_reader(tmp_path: Path, write_coco: Callable[..., Path]) -> None:
    path = write_coco()
    assert isinstance(open_source(path), CocoSource)
    assert isinstance(open_source(str(tmp_path), labeled=False), FolderSource)


def test_a_json_as_unlabeled_source_needs_no_annotations(write_coco: Callable[..., Path]) -> None:
    source = open_source(write_coco(annotations=None, categories=None), labeled=False)
    assert len(source) == 2 and source.num_boxes == 0 and source[0].boxes_xyxy.shape == (0, 4)


def test_what_is_not_accepted_is_named(tmp_path: Path, write_coco: Callable[..., Path]) -> None:
    write_coco()
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"one\.png.*\.png.*COCO \.json"):
        open_source(tmp_path / "one.png")
    with pytest.raises(ValueError, match="no boxes"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match="image_folder='x'"):
        open_source(tmp_path, "x", labeled=False)
