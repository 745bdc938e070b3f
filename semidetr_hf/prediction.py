"""Detection on images that need not fit into memory: in batches, written as pictures and as COCO json or parquet."""

import glob
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from tqdm.auto import tqdm

from semidetr_hf.batch_inference.formats import require_format, write_coco, write_parquet, write_unreadable
from semidetr_hf.batch_inference.journal import Journal
from semidetr_hf.batch_inference.loading import Images, LoadedBatch, NamedImages, load_batches, name_images
from semidetr_hf.data.folder import UnlabeledSource, is_image_name
from semidetr_hf.data.images import Sample
from semidetr_hf.data.sources import open_source
from semidetr_hf.data.tar_shards import is_shards
from semidetr_hf.training.evaluation import detections_to_coco
from semidetr_hf.video import VIDEO_SUFFIXES, VideoFrames
from semidetr_hf.visualization import draw_boxes, enlarge_small


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
    """What came out.

    Attributes:
        images: that were looked at.
        unreadable: images that could not be read.
        detections: on all images.
        images_per_second: of this run, without what an interrupted one had done before.
    """

    images: int
    unreadable: int
    detections: int
    images_per_second: float


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
    _require_in_range(threshold, batch_size)
    remaining = iter(samples)
    while batch := list(islice(remaining, batch_size)):
        inputs = processor(images=[sample.image for sample in batch], return_tensors="pt")
        sizes = [(sample.image.height, sample.image.width) for sample in batch]
        results = _detect(model, processor, inputs, sizes, threshold)
        for sample, result in zip(batch, results, strict=True):
            yield Prediction(sample, result["boxes"], result["labels"], result["scores"])


def predict_to_folder(
    model: Any,
    processor: Any,
    images: Sequence[Images],
    output: str | Path,
    *,
    threshold: float = 0.3,
    batch_size: int = 1,
    draw: bool = True,
    format: str = "coco",
    num_workers: int = 0,
    resume: bool = False,
    progress: bool = True,
) -> PredictionCount:
    """Write what is found on any number of images and, for every image, a picture with the boxes.

    `predictions.json` is a COCO result list, one detection per line, with boxes [x, y, width, height] in pixels, the
    category ids of the data set that the detector was trained on, and `file_name`. `image_id` is that of a COCO json
    or of a data set, otherwise the file name. With several inputs both begin with the name of theirs. Pictures are
    named after the images, with `.png` behind it. `predictions.parquet` has the same, a row per image. Unreadable
    images are left out, with a line on stderr and in `unreadable.txt`.

    Until all is done, `predictions.partial.jsonl` holds what was found; a run that was killed goes on behind it and
    ends with the same files. No more than a few batches are in memory.

    Args:
        model: a transformers detector in evaluation mode, on its device.
        processor: its image processor.
        images: as `open_images` returns them.
        output: the folder, made if needed. The predictions appear there when all is done.
        threshold: smallest score of a detection.
        batch_size: images per forward pass.
        draw: False to write no pictures.
        format: of the predictions, `coco` or `parquet`.
        num_workers: processes that read and prepare images ahead; 0 = none.
        resume: whether to go on with what an interrupted run has left, if anything.
        progress: whether to show a progress bar.

    Raises:
        FileExistsError: if an interrupted run has left something and `resume` is False.
        OSError: if a file cannot be written; names it.
        ValueError: if no image can be read, a video breaks off, an argument is out of range, or the interrupted run
            had other images, another detector or other settings.
    """
    _require_in_range(threshold, batch_size, num_workers)
    require_format(format)
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output}: a file; give a folder")
    named = name_images(images)
    settings = {
        "detector": _fingerprint_of_detector(model, processor),
        "list of images": _fingerprint_of_images(named),
        "threshold": threshold,
        "batch size": batch_size,
        "drawing": draw,
    }
    with Journal(output / "predictions.partial.jsonl", settings, resume=resume) as journal:
        first, done = journal.totals.batches, journal.totals.images + journal.totals.unreadable
        batches = load_batches(
            named, processor, batch_size=batch_size, pictures=draw, num_workers=num_workers, first=first
        )
        # A video does not always tell how long it is.
        total = sum(map(len, images)) if all(map(len, images)) else None
        started = time.perf_counter()
        with tqdm(desc="predict", total=total, initial=done, unit=" images", disable=not progress) as bar:
            for batch in batches:
                _tell_unreadable(batch)
                journal.add(_predict_batch(model, processor, batch, threshold, output if draw else None))
                bar.update(len(batch.images) + len(batch.unreadable))
        seconds = time.perf_counter() - started
        _finish(output, journal, format, _names_by_category(model), named)
        totals = journal.totals
    rate = (totals.images + totals.unreadable - done) / seconds
    return PredictionCount(totals.images, totals.unreadable, totals.detections, rate)


def _require_in_range(threshold: float, batch_size: int, num_workers: int = 0) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: is no score; give a number from 0 to 1")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be 1 or more")
    if num_workers < 0:
        raise ValueError(f"num_workers={num_workers}: must be 0 or more")


@torch.no_grad()
def _detect(
    model: Any, processor: Any, inputs: Any, sizes: Sequence[tuple[int, int]], threshold: float
) -> list[dict[str, Tensor]]:
    """Return `boxes` clipped to the images, `labels` and `scores` of each, on the CPU."""
    outputs = model(**inputs.to(model.device))
    results = processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=list(sizes))
    return [
        {
            "boxes": clip_boxes_to_image(result["boxes"].float().cpu(), size),
            "labels": result["labels"].cpu(),
            "scores": result["scores"].float().cpu(),
        }
        for size, result in zip(sizes, results, strict=True)
    ]


def _predict_batch(
    model: Any, processor: Any, batch: LoadedBatch, threshold: float, pictures: Path | None
) -> dict[str, Any]:
    """Return the record of a batch for the journal, after its pictures are written."""
    if not batch.images:
        return {"images": [], "unreadable": batch.unreadable}
    results = _detect(model, processor, batch.inputs, [image.size for image in batch.images], threshold)
    category_ids = list(_names_by_category(model))
    records = []
    for image, result in zip(batch.images, results, strict=True):
        if pictures is not None and image.picture is not None:
            _save(_drawn(image.picture, result, model.config.id2label), _picture_path(pictures, image.file_name))
        found = detections_to_coco([result], [image.image_id], category_ids)
        records.append(
            {
                "image_id": image.image_id,
                "file_name": image.file_name,
                "width": image.size[1],
                "height": image.size[0],
                "detections": [{key: value for key, value in each.items() if key != "image_id"} for each in found],
            }
        )
    return {"images": records, "unreadable": batch.unreadable}


def _names_by_category(model: Any) -> dict[int, str]:
    """Return category id -> name, in the order of the class labels."""
    names = model.config.id2label
    ids = getattr(model.config, "category_ids", None) or sorted(names)
    return {category_id: names[label] for label, category_id in enumerate(ids)}


def _tell_unreadable(batch: LoadedBatch) -> None:
    for message in batch.unreadable:
        tqdm.write(f"skipped: {message}", file=sys.stderr)


def _finish(
    output: Path, journal: Journal, format: str, names: Mapping[int, str], named: Sequence[NamedImages]
) -> None:
    """Write the files that stay, and remove the one that does not."""
    if journal.totals.images == 0:
        journal.remove()
        where = ", ".join(part.images.name for part in named)
        count = journal.totals.unreadable
        raise ValueError(f"{where}: none of the {count} images can be read; see above for the reasons")
    if format == "coco":
        write_coco(output / "predictions.json", journal.records())
    else:
        numeric = all(_has_numbers_as_ids(part) for part in named)
        write_parquet(output / "predictions.parquet", journal.records(), names, numeric_ids=numeric)
    if journal.totals.unreadable:
        write_unreadable(output / "unreadable.txt", journal.records())
    journal.remove()


def _has_numbers_as_ids(part: NamedImages) -> bool:
    if part.prefix or isinstance(part.images, VideoFrames):
        return False
    return all(isinstance(image_id, int) for image_id in part.images.image_ids)


def _fingerprint_of_detector(model: Any, processor: Any) -> str:
    """Return what is another for other weights or settings."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    digest.update(processor.to_json_string().encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _fingerprint_of_images(named: Sequence[NamedImages]) -> str:
    """Return what is another for other images, by their ids; a file with another content is not noticed."""
    digest = hashlib.sha256()
    for images, prefix in named:
        ids = [images.path, images.every] if isinstance(images, VideoFrames) else images.image_ids
        digest.update(json.dumps([prefix, images.name]).encode())
        for image_id in ids:
            digest.update(f"{image_id}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _drawn(picture: Image.Image, result: Mapping[str, Tensor], names: Mapping[int, str]) -> Image.Image:
    enlarged, factor = enlarge_small(picture)
    labels = [names[label] for label in result["labels"].tolist()]
    return draw_boxes(enlarged, result["boxes"] * factor, labels, result["scores"])


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
