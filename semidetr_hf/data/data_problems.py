"""What the data check finds: one `Problem` each, the checked sets, and the report as text and as json.

An error is what training refuses, or what makes its metric a lie; a warning is what it drops, skips or merely allows.
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from .coco_json import CocoImage
from .images import ImageFile

Role = Literal["labeled", "unlabeled", "val"]
Severity = Literal["error", "warning"]
# What `--fix` may do to the one entry that a problem is about; "fill_in_size" is about all images without a size.
Fix = Literal["drop_image", "drop_annotation", "drop_category", "drop_area", "clip_box", "fill_in_size"]

MAX_VALUE_LENGTH = 200  # characters
REPORT_FORMAT = 1  # raise it when a key of the json report changes its meaning


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        severity: "error" if training refuses it or its metric would be a lie, "warning" if it drops or skips it.
        kind: such as `outside` or `leak`.
        role: of the set that it was found in.
        file: the json, XML or image file.
        image_id: None where no image is concerned, or none can be told.
        annotation_id: likewise.
        value: what is there, with the bad value.
        advice: the way out.
        fix: what `--fix` does about it; None if that would be a guess, or the set is no COCO json.
        place: of the entry that is to be fixed, in its list of the json.
    """

    severity: Severity
    kind: str
    role: Role
    file: str
    image_id: int | str | None = None
    annotation_id: int | str | None = None
    value: str
    advice: str
    fix: Fix | None = None
    place: int | None = None

    def __str__(self) -> str:
        # Values that begin with the image say which one themselves.
        is_told = self.image_id is None or self.value.startswith("image ")
        return _printable(f"{self.file}: {'' if is_told else f'image {self.image_id!r}: '}{self.value}")


@dataclass(kw_only=True)
class CheckedSet:
    """One set of images and what was found in it.

    Attributes:
        role: what the set is used for.
        path: as given.
        is_coco: whether it is a COCO json, which `--fix` can clean.
        stamp: size and time of change of the json when it was read.
        images: the images that can be opened; of a repeated id the first.
        places: where each of `images` is in the list of the json; empty for other sets.
        locate: gives the file of the image at a place of `images`; None if they were not found and cannot be opened.
        categories: category id -> name.
        class_counts: category id -> number of boxes to train on.
        unsized: image id -> annotations that await the size of the picture: their place, id and bbox.
        found_sizes: image id -> (height, width) of pictures whose size the json does not give.
        num_usable: how many images can be used; None until they were tried.
        problems: in the order in which they were found.
    """

    role: Role
    path: Path
    is_coco: bool = False
    stamp: tuple[int, int] | None = None
    images: list[CocoImage] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    locate: Callable[[int], ImageFile] | None = None
    categories: dict[int, str] = field(default_factory=dict)
    class_counts: Counter[int] = field(default_factory=Counter)
    unsized: dict[int | str, list[tuple[int, Any, tuple[float, float, float, float]]]] = field(default_factory=dict)
    found_sizes: dict[int | str, tuple[int, int]] = field(default_factory=dict)
    num_usable: int | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def labeled(self) -> bool:
        """Whether the boxes of the set are used."""
        return self.role != "unlabeled"

    def add(
        self,
        severity: Severity,
        kind: str,
        value: str,
        advice: str,
        *,
        file: ImageFile | None = None,
        image_id: Any = None,
        annotation_id: Any = None,
        fix: Fix | None = None,
        place: int | None = None,
    ) -> None:
        """Note a problem; ids that are neither integers nor strings are left out, long values cut."""
        problem = Problem(
            severity=severity,
            kind=kind,
            role=self.role,
            file=str(file or self.path),
            image_id=image_id if isinstance(image_id, int | str) else None,
            annotation_id=annotation_id if isinstance(annotation_id, int | str) else None,
            value=value if len(value) <= MAX_VALUE_LENGTH else f"{value[:MAX_VALUE_LENGTH]}...",
            advice=advice,
            fix=fix if self.is_coco else None,
            place=place if self.is_coco else None,
        )
        self.problems.append(problem)

    def add_refusal(self, kind: str, error: Exception, advice: str, **where: Any) -> None:
        """Note what a reader refuses in its own words, which are `file: value; way out`."""
        text = str(error).removeprefix(f"{where.get('file') or self.path}: ")
        value, separator, way_out = text.rpartition("; ")
        self.add("error", kind, value or text, way_out if separator else advice, **where)


@dataclass(frozen=True)
class DataReport:
    """The result of a data check."""

    sets: list[CheckedSet]

    @property
    def problems(self) -> list[Problem]:
        """Everything found, set by set."""
        return [problem for checked in self.sets for problem in checked.problems]

    @property
    def num_errors(self) -> int:
        """How many problems are errors."""
        return sum(problem.severity == "error" for problem in self.problems)

    @property
    def counts(self) -> Counter[tuple[Severity, Role, str]]:
        """How many problems there are of a severity, role and kind: errors first, then in the order of the sets."""
        found = Counter((problem.severity, problem.role, problem.kind) for problem in self.problems)
        return Counter(dict(sorted(found.items(), key=lambda item: item[0][0] != "error")))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what json can hold."""
        counts = [
            {"severity": severity, "role": role, "kind": kind, "count": count}
            for (severity, role, kind), count in self.counts.items()
        ]
        return {
            "format": REPORT_FORMAT,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("semidetr-hf", "pillow", "numpy")},
            },
            "sets": [_summary(checked) for checked in self.sets],
            "num_errors": self.num_errors,
            "num_warnings": len(self.problems) - self.num_errors,
            "counts": counts,
            "problems": [asdict(problem) for problem in self.problems],
        }

    def to_text(self, max_examples: int = 5) -> str:
        """Return the report for a terminal: the sets, the counts, a few examples of each kind, the verdict."""
        rows = [["", "images", "usable", "boxes", "classes", "source"], *map(_set_row, self.sets)]
        blocks = ["\n".join(_aligned(rows, left=(0, 5)))]
        if self.counts:
            header = ["severity", "set", "problem", "count", "can be fixed"]
            rows = [[*key, str(count), str(self._num_fixable(key))] for key, count in self.counts.items()]
            blocks.append("\n".join(_aligned([header, *rows], left=(0, 1, 2))))
        blocks += ["\n".join(self._examples(key, max_examples)) for key in self.counts]
        return "\n\n".join([*blocks, self._verdict()])

    def _of(self, key: tuple[Severity, Role, str]) -> list[Problem]:
        return [problem for problem in self.problems if (problem.severity, problem.role, problem.kind) == key]

    def _num_fixable(self, key: tuple[Severity, Role, str]) -> int:
        return sum(problem.fix is not None for problem in self._of(key))

    def _examples(self, key: tuple[Severity, Role, str], max_examples: int) -> Iterator[str]:
        severity, role, kind = key
        found = self._of(key)
        yield f"{severity}: {kind} in {role}"
        yield from (f"  {problem}" for problem in found[:max_examples])
        if len(found) > max_examples:
            yield f"  ... and {len(found) - max_examples} more"
        yield from (f"  -> {_printable(advice)}" for advice in dict.fromkeys(problem.advice for problem in found))

    def _verdict(self) -> str:
        num_warnings = len(self.problems) - self.num_errors
        warnings = "" if num_warnings == 0 else f", {_counted(num_warnings, 'warning')}"
        if self.num_errors == 0:
            return f"ready to train{warnings}"
        fixable = sum(problem.severity == "error" and problem.fix is not None for problem in self.problems)
        if fixable == 0:
            way_out = "correct the files, --fix cannot"
        elif fixable == self.num_errors:
            way_out = "correct the files or run with --fix"
        else:
            way_out = f"correct the files, or run with --fix for {fixable} of the errors"
        return f"{_counted(self.num_errors, 'error')}{warnings}: {way_out}"


def _summary(checked: CheckedSet) -> dict[str, Any]:
    return {
        "role": checked.role,
        "source": str(checked.path),
        "num_images": len(checked.images),
        "num_usable": checked.num_usable,
        "num_boxes": sum(checked.class_counts.values()) if checked.labeled else None,
        "classes": [
            {"id": category_id, "name": name, "num_boxes": checked.class_counts[category_id]}
            for category_id, name in checked.categories.items()
        ],
    }


def _set_row(checked: CheckedSet) -> list[str]:
    usable = "?" if checked.num_usable is None else f"{checked.num_usable:,}"
    boxes = f"{sum(checked.class_counts.values()):,}" if checked.labeled else "-"
    classes = str(len(checked.categories)) if checked.labeled else "-"
    return [checked.role, f"{len(checked.images):,}", usable, boxes, classes, _printable(str(checked.path))]


def _aligned(rows: list[list[str]], *, left: tuple[int, ...]) -> list[str]:
    """Return the rows of a table as lines; the columns that are not `left` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _printable(text: str) -> str:
    """Return text on one line, without what would steer a terminal or cannot be encoded."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )
