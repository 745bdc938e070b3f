"""The frames of a video as images without boxes, read one after the other with PyAV."""

from collections.abc import Iterator
from pathlib import Path

import torch

from semidetr_hf.data.images import Sample

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


class VideoFrames:
    """Every n-th frame of a video.

    Frames are named by their number in the video, which begins with 0: `frame_000030`.

    Args:
        path: the video file, in any format that FFmpeg reads.
        every: 1 for every frame, 10 for the first, the eleventh and so on.

    Raises:
        ValueError: if PyAV is not installed, `every` is below 1, or the file is no video.
    """

    def __init__(self, path: str | Path, *, every: int = 1) -> None:
        try:
            import av
        except ModuleNotFoundError as error:
            raise ValueError(f"{path}: frames of a video are read with PyAV; pip install av") from error
        if every < 1:
            raise ValueError(f"every={every}: must be 1 or more")
        self.path = Path(path)
        self.name = self.path.stem
        self.every = every
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise ValueError(f"{path}: holds no pictures; give a video")
                stream = container.streams.video[0]
                seconds = 0.0 if container.duration is None else container.duration / av.time_base
                self.num_frames = stream.frames or round(seconds * float(stream.average_rate or 0))
        except av.FFmpegError as error:
            raise ValueError(f"{path}: not a readable video ({error.strerror}); give another file") from error

    def __len__(self) -> int:
        """Return about how many frames there will be, as the header of the file tells; 0 if it does not."""
        return -(-self.num_frames // self.every)

    def __iter__(self) -> Iterator[Sample]:
        """Yield the frames.

        Raises:
            ValueError: if the video breaks off; the frames before were given.
        """
        import av

        try:
            with av.open(str(self.path)) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number % self.every == 0:
                        image = frame.to_image().rotate(frame.rotation, expand=True)
                        name = f"frame_{number:06d}"
                        yield Sample(
                            image=image,
                            boxes_xyxy=torch.zeros((0, 4), dtype=torch.float32),
                            class_labels=torch.zeros((0,), dtype=torch.int64),
                            image_id=name,
                            file_name=name,
                        )
        except av.FFmpegError as error:
            raise ValueError(f"{self.path}: cannot be read any further ({error.strerror}); repair the file") from error
