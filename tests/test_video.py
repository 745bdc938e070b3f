import sys
from pathlib import Path

import pytest
from PIL import Image

from semidetr_hf.prediction import open_images
from semidetr_hf.video import VideoFrames

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Five frames of one color each, 64 x 48 pixels."""
    av = pytest.importorskip("av", reason="PyAV, which videos need, is not installed")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for color in COLORS:
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48), color))))
        container.mux(stream.encode(None))
    return tmp_path / "clip.mp4"


def test_frames_come_in_order_with_their_numbers(clip: Path) -> None:
    video = VideoFrames(clip)
    frames = list(video)
    assert (video.name, len(video)) == ("clip", 5)
    assert [frame.image_id for frame in frames] == [f"frame_{i:06d}" for i in range(5)]
    assert {frame.image.size for frame in frames} == {(64, 48)}
    for frame, color in zip(frames, COLORS, strict=True):
        # The video compresses colors.
        assert frame.image.getpixel((32, 24)) == pytest.approx(color, abs=12)


def test_every_second_frame(clip: Path) -> None:
    [video] = open_images([clip], every_frame=2)
    assert isinstance(video, VideoFrames)
    assert [frame.image_id for frame in video] == ["frame_000000", "frame_000002", "frame_000004"]
    assert len(video) == 3


def test_what_is_no_video_is_one_line(clip: Path) -> None:
    clip.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"clip\.mp4: not a readable video"):
        VideoFrames(clip)


def test_without_pyav_it_is_told_what_to_install(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"some video")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"clip\.mp4: frames of a video are read with PyAV; pip install av"):
        open_images([tmp_path / "clip.mp4"])
