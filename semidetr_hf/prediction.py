"""Detection on images that need not fit into memory: in batches, written as pictures and as a COCO result list."""

import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from tqdm.auto import tqdm

from semidetr_hf.data.folder import UnlabeledSource, is_image_name
from semidetr_hf.data.images import Sample, UnreadableImageError
from semidetr_hf.data.sources import Source, open_source
from semidetr_hf.data.splits import open_whole
from semidetr_hf.data.tar_shards import is_shards
from semidetr_hf.training.evaluation import detections_to_coco
from semidetr_hf.video import VIDEO_SUFFIXES, VideoFrames
from semidetr_hf.visualization import draw_boxes, enlarge_small

Images = Source | VideoFrames


class Prediction(NamedTuple):
    """An image and what was found on it, best first.

    Attributes:
        sample: the image; its boxes are not looked at.
        boxes_xyxy: (N, 4) float, pixels of the image, clipped to it.
        class_labels: (N,) int64.
        scores: (N,) float, from 0 to 1.
    """

    sample: Sample
    boxes_xyxy: Tensor
    class_labels: Tensor
    scores: Tensor


class PredictionCount(NamedTuple):
    """How many images were looked at, how many could not be read, and how many detections there are."""

    images: int
    unreadable: int
    detections: int


class FilesSource(UnlabeledSource):
    """Single image files; each is named by its path below the folder that all of them share.

    Args:
        files: one or more image files, none of them twice.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.folder = Path(os.path.commonpath([file.absolute().parent for file in files]))
        self.name = self.folder.name
        self.image_ids = [file.absolute().relative_to(self.folder).as_posix() for file in files]

    def path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.folder / self.image_ids[index]


def open_images(
    inputs: Sequence[str | Path], image_folder: str | Path | None = None, *, every_frame: int = 1
) -> list[Images]:
    """Open what images are to be predicted on.

    Args:
        inputs: image files, videos, patterns such as `photos/*.jpg` (`**` for any sub-folders), and everything that
            `open_source` takes for unlabeled images: folders, COCO json files, tar files and so on.
        image_folder: of the images of a json or of XML files, if they are not found beside it.
        every_frame: take every n-th frame of a video.

    Returns:
        One collection for all image files, and one for every other input.

    Raises:
        FileNotFoundError: if there is no such file, or none that fits a pattern.
        ValueError: if nothing is given, or something that holds no images, or a video and PyAV is not installed.
    """
    if not inputs:
        raise ValueError("no images given; name files, folders, or a COCO json")
    paths = dict.fromkeys(path for given in inputs for path in _expand(str(given)))  # each once
    files = [Path(path) for path in paths if os.path.isfile(path) and is_image_name(path)]
    images: list[Images] = [FilesSource(files)] if files else []
    for path in paths:
        if Path(path).suffix.lower() in VIDEO_SUFFIXES and os.path.isfile(path):
            images.append(VideoFrames(path, every=every_frame))
        elif Path(path) not in files:
            images.append(open_source(path, image_folder, labeled=False))
    return images


def _expand(text: str) -> list[str]:
    if os.path.exists(text) or not glob.has_magic(text) or is_shards(text):
        return [text]
    found = sorted(glob.glob(text, recursive=True))
    if not found:
        raise FileNotFoundError(f"{text}: no file fits this pattern; correct it")
    return found


@torch.no_grad()
def predict(
    model: Any, processor: Any, samples: Iterable[Sample], *, threshold: float = 0.3, batch_size: int = 1
) -> Iterator[Prediction]:
    """Yield the detections on one image after the other; no more than a batch is in memory.

    Args:
        model: a transformers detector in evaluation mode, on its device.
        processor: its image processor.
        samples: the images.
        threshold: smallest score of a detection, from 0 to 1.
        batch_size: images per forward pass; those of other sizes are padded, which changes scores a little.

    Raises:
        ValueError: if `threshold` or `batch_size` is out of range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: is no score; give a number from 0 to 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be 1 or more")
    remaining = iter(samples)
    while batch := list(islice(remaining, batch_size)):
        images = [sample.image for sample in batch]
        inputs = processor(images=images, return_tensors="pt").to(model.device)
        sizes = [(image.height, image.width) for image in images]
        results = processor.post_process_object_detection(model(**inputs), threshold=threshold, target_sizes=sizes)
        for sample, size, result in zip(batch, sizes, results, strict=True):
            boxes = clip_boxes_to_image(result["boxes"].float().cpu(), size)
            yield Prediction(sample, boxes, result["labels"].cpu(), result["scores"].float().cpu())


def predict_to_folder(
    model: Any,
    processor: Any,
    images: Sequence[Images],
    output: str | Path,
    *,
    threshold: float = 0.3,
    batch_size: int = 1,
    draw: bool = True,
    progress: bool = True,
) -> PredictionCount:
    """Write `predictions.json` and, for every image, a picture with the boxes.

    The file is a COCO result list, one detection per line, with boxes [x, y, width, height] in pixels, the category
    ids of the data set that the detector was trained on, and `file_name`. `image_id` is that of a COCO json or of a
    data set, otherwise the file name. With several inputs both begin with the name of theirs. Pictures are named
    after the images, with `.png` behind it. Unreadable images are left out, with a line on stderr.

    Args:
        model: a transformers detector in evaluation mode, on its device.
        processor: its image processor.
        images: as `open_images` returns them.
        output: the folder, made if needed. The json appears there when all is done.
        threshold: smallest score of a detection, from 0 to 1.
        batch_size: images per forward pass.
        draw: False to write no pictures.
        progress: whether to show a progress bar.

    Raises:
        OSError: if a file cannot be written; names it.
        ValueError: if no image can be read, a video breaks off, or an argument is out of range.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output}: a file; give a folder")
    names = model.config.id2label
    category_ids = getattr(model.config, "category_ids", None) or sorted(names)
    num_images = num_detections = 0
    unreadable: list[str] = []
    # A video does not always tell how long it is.
    total = sum(map(len, images)) if all(map(len, images)) else None
    with (
        open_whole(output / "predictions.json") as file,
        tqdm(desc="predict", total=total, unit=" images", disable=not progress) as bar,
    ):
        samples = _readable(images, bar, unreadable)
        for prediction in predict(model, processor, samples, threshold=threshold, batch_size=batch_size):
            for found in _to_coco(prediction, category_ids):
                file.write(f"{',' if num_detections else '['}\n{json.dumps(found)}")
                num_detections += 1
            if draw:
                _save(_drawn(prediction, names), _picture_path(output, prediction.sample.file_name))
            num_images += 1
            bar.update()
        if num_images == 0:
            where = ", ".join(part.name for part in images)
            raise ValueError(f"{where}: none of the {len(unreadable)} images can be read; see above for the reasons")
        file.write("\n]\n" if num_detections else "[]\n")
    return PredictionCount(num_images, len(unreadable), num_detections)


def _readable(images: Sequence[Images], bar: tqdm, unreadable: list[str]) -> Iterator[Sample]:
    """Yield the samples of all inputs; what cannot be read is told and added to `unreadable`."""
    prefixes = [f"{name}/" for name in _distinct([part.name for part in images])] if len(images) > 1 else [""]
    for part, prefix in zip(images, prefixes, strict=True):
        for sample in part if isinstance(part, VideoFrames) else _samples(part):
            if isinstance(sample, UnreadableImageError):
                tqdm.write(f"skipped: {sample}", file=sys.stderr)
                unreadable.append(str(sample))
                bar.update()
                continue
            name = f"{prefix}{sample.file_name or sample.image_id}"
            yield replace(sample, file_name=name, image_id=f"{prefix}{sample.image_id}" if prefix else sample.image_id)


def _distinct(names: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return distinct


def _samples(source: Source) -> Iterator[Sample | UnreadableImageError]:
    for index in range(len(source)):
        try:
            yield source[index]
        except UnreadableImageError as error:
            yield error


def _to_coco(prediction: Prediction, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    result = {"boxes": prediction.boxes_xyxy, "labels": prediction.class_labels, "scores": prediction.scores}
    sample = prediction.sample
    found = detections_to_coco([result], [sample.image_id], category_ids)
    return [{**detection, "file_name": sample.file_name} for detection in found]


def _drawn(prediction: Prediction, names: Mapping[int, str]) -> Image.Image:
    enlarged, factor = enlarge_small(prediction.sample.image)
    labels = [names[label] for label in prediction.class_labels.tolist()]
    return draw_boxes(enlarged, prediction.boxes_xyxy * factor, labels, prediction.scores)


def _picture_path(output: Path, file_name: str) -> Path:
    """Return a place within the output folder, whatever path a json gives its images."""
    path = Path(file_name)
    parts = ["_" if part == ".." else part for part in path.parts if part != path.anchor]
    return output.joinpath(*parts[:-1], f"{parts[-1]}.png")


def _save(picture: Image.Image, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written ({error.strerror}); make room, or give another folder") from error


def usable_device(name: str | None) -> torch.device:
    """Return a device after it was used once.

    Args:
        name: as torch calls it, such as `cuda:1`; None for the accelerator of the machine, if it has one.

    Raises:
        ValueError: if there is no such device.
    """
    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = "cpu" if found is None else found.type
    try:
        return torch.zeros(1, device=name).cpu().new_empty(0, device=name).device
    # A build of torch without CUDA says so with an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{name!r} cannot be used as a device ({reason}); give another, such as cpu") from error
