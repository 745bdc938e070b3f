import copy
import io
import json
import math
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.coco_json import CocoDocument, read_coco_json, visible_box
from semidetr_hf.data.images import UnreadableImageError, load_image
from semidetr_hf.data.splits import labeled_subset, read_ids, write_coco_splits, write_ids
from semidetr_hf.data.voc import VocSource, voc_to_coco_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = TEXT.filter(bool)
SEEDS = st.integers(0, 1000)
# A path or a message may choke on these.
ODD_TEXT = st.sampled_from(
    ["a\nb", "a\r\u2028b", "\0", "\ud800", "\udcff", "", " ", "..", "/", "x" * 300, "x/" * 3000]
)
HUGE = st.sampled_from([10**400, -(10**400), 10**308, 2**63, math.inf, -math.inf, math.nan, 1e308])
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats()
    | HUGE
    | st.text(max_size=4)
    | ODD_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | ODD_TEXT, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples, with one picture of 40 x 30 pixels."""
    path = tmp_path_factory.mktemp("readers")
    Image.new("RGB", (40, 30)).save(path / "a.png")
    return path


def read_or_complain(read: Callable[[], Any], path: Path, kinds: tuple = (ValueError, FileNotFoundError)) -> Any:
    """Return what is read, or None after a complaint of one line that names the file."""
    try:
        return read()
    except kinds as error:
        assert str(path) in str(error), f"does not name the file: {error}"
        assert len(str(error).splitlines()) == 1, f"more than one line: {error}"
        return None


# ---- COCO


@st.composite
def documents(draw: st.DrawFn, file_names: st.SearchStrategy[str] = NAMES) -> dict[str, Any]:
    """A COCO file as an exporter may write it."""
    image_ids = draw(st.lists(st.integers() | TEXT, min_size=1, max_size=4, unique=True))
    category_ids = draw(st.lists(st.integers(), min_size=1, max_size=3, unique=True))
    images: list[dict[str, Any]] = [{"id": image_id, "file_name": draw(file_names)} for image_id in image_ids]
    for image in images:
        if draw(st.booleans()):
            image |= {"width": 40, "height": 30}
    numbers = st.integers(-50, 50) | st.floats(-50, 50)
    sides = st.integers(0, 60) | st.floats(0, 60)
    annotation = st.fixed_dictionaries(
        {
            "image_id": st.sampled_from(image_ids),
            "category_id": st.sampled_from(category_ids),
            "bbox": st.tuples(numbers, numbers, sides, sides).map(list),
        },
        optional={
            "id": st.integers(),
            "area": sides | st.none(),
            "iscrowd": st.integers(0, 1),
            "ignore": st.booleans(),
        },
    )
    return {
        "images": images,
        "categories": [{"id": category_id, "name": draw(TEXT)} for category_id in category_ids],
        "annotations": draw(st.lists(annotation, max_size=5)),
        "info": draw(TEXT | st.lists(TEXT)),
    }


@given(documents(), st.booleans())
def test_a_valid_coco_file_reads_back_as_it_is_written(folder: Path, content: dict, ascii_only: bool) -> None:
    path = folder / "valid.json"
    path.write_text(json.dumps(content, ensure_ascii=ascii_only), encoding="utf-8", errors="surrogatepass")
    assume(ascii_only or is_utf8(path))
    document = read_coco_json(path)
    written = [
        (entry["id"], entry["file_name"], (30, 40) if "width" in entry else None) for entry in content["images"]
    ]
    assert document.images == written
    pairs = sorted((entry["id"], entry["name"]) for entry in content["categories"])
    assert list(document.categories.items()) == pairs
    for image_id, _, size in written:
        entries = [entry for entry in content["annotations"] if entry["image_id"] == image_id]
        read = document.annotations.get(image_id, [])
        assert len(read) == len(entries)
        for annotation, entry in zip(read, entries, strict=True):
            box = tuple(entry["bbox"])
            left_out = bool(entry.get("iscrowd") or entry.get("ignore"))
            assert (annotation.category_id, annotation.bbox) == (entry["category_id"], box)
            assert annotation.area == (box[2] * box[3] if entry.get("area") is None else entry["area"])
            assert annotation.is_crowd == left_out
            assert annotation.usable == (not left_out and visible_box(box, size) is not None)
    count = sum(not annotation.usable for entries in document.annotations.values() for annotation in entries)
    assert document.dropped.total() == count
    assert read_coco_json(path, labeled=False) == CocoDocument(
        images=document.images, categories=document.categories, annotations={}
    )


def is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


@given(documents(file_names=st.just("a.png")), st.data())
def test_ground_truth_and_subsets_hold_the_boxes_of_their_images(
    folder: Path, content: dict, data: st.DataObject
) -> None:
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    source = CocoSource(path)
    document = read_coco_json(path)
    path.write_text(json.dumps(source.coco_ground_truth()))
    again = read_coco_json(path)
    assert (again.images, again.categories, again.annotations) == (
        document.images,
        document.categories,
        document.annotations,
    )
    chosen = data.draw(st.lists(st.sampled_from(source.image_ids), min_size=1, unique=True))
    rest = [image_id for image_id in source.image_ids if image_id not in chosen]
    part = source.subset(chosen)
    assert part.image_ids == [image_id for image_id in source.image_ids if image_id in chosen]
    counts = np.array(part.class_counts) + (np.array(source.subset(rest).class_counts) if rest else 0)
    assert counts.tolist() == list(source.class_counts)
    for sample in (source[place] for place in range(len(source))):
        assert len(sample.boxes_xyxy) <= sum(entry.usable for entry in document.annotations.get(sample.image_id, []))
        assert ((sample.boxes_xyxy >= 0) & (sample.boxes_xyxy <= sample.boxes_xyxy.new_tensor([40, 30] * 2))).all()


@given(
    st.tuples(*[st.floats(-100, 100)] * 2, *[st.floats(0, 100)] * 2), st.none() | st.tuples(*[st.integers(1, 90)] * 2)
)
def test_a_visible_box_is_visible_as_it_is(bbox: tuple, size: tuple[int, int] | None) -> None:
    box = visible_box(bbox, size)
    if box is not None:
        x1, y1, x2, y2 = box
        assert 0 <= x1 < x2 <= (size or (math.inf, math.inf))[1] and 0 <= y1 < y2 <= (size or (math.inf, math.inf))[0]
        assert max(bbox[0], 0) == x1 and max(bbox[1], 0) == y1
        # Rounding of x1 + (x2 - x1) may cost a box of exactly one pixel its last bit.
        inner = visible_box((x1, y1, x2 - x1, y2 - y1), size)
        assert inner == pytest.approx(box) if inner is not None else min(x2 - x1, y2 - y1) < 1


def places_in(tree: Any, place: tuple = ()) -> list[tuple]:
    """Return the way to every value of a JSON tree but the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [way for key, value in items for way in ((*place, key), *places_in(value, (*place, key)))]


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[Any]) -> Any:
    """A JSON tree in which one to three values are replaced, removed, or repeated in their list."""
    tree = copy.deepcopy(draw(whole))
    for _ in range(draw(st.integers(1, 3))):
        ways = places_in(tree)
        if not ways:
            break
        # Of all depths alike: most values are leaves.
        depth = draw(st.sampled_from(sorted({len(way) for way in ways})))
        *parents, key = draw(st.sampled_from([way for way in ways if len(way) == depth]))
        parent = tree
        for step in parents:
            parent = parent[step]
        match draw(st.sampled_from(["replace", "replace", "remove", "repeat"])):
            case "replace":
                parent[key] = draw(JSON_VALUES | ODD_TEXT | HUGE)
            case "remove":
                del parent[key]
            case "repeat" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
    return tree


def check_document(document: CocoDocument) -> None:
    assert document.images
    for image in document.images:
        assert isinstance(image.image_id, int | str) and isinstance(image.file_name, str) and image.file_name
        assert image.size is None or all(type(side) is int and side >= 1 for side in image.size)
    assert all(type(key) is int and isinstance(name, str) for key, name in document.categories.items())
    for image_id, entries in document.annotations.items():
        assert any(image.image_id == image_id for image in document.images)
        for entry in entries:
            assert entry.category_id in document.categories
            assert all(type(value) is float and math.isfinite(value) for value in entry.bbox)
            assert min(entry.bbox[2:]) >= 0 and entry.area >= 0


TINY = {"images": [{"id": 1, "file_name": "a"}], "categories": [{"id": 1, "name": "x"}], "annotations": []}


@settings(max_examples=200)
@given(damaged(documents()) | JSON_VALUES, st.booleans())
@example(TINY | {"categories": None}, False)
@example(TINY | {"categories": 5}, False)
@example(TINY | {"annotations": [{"id": "a\nb", "image_id": 1, "category_id": 1, "bbox": None}]}, True)
@example(TINY | {"annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10**400, 1]}]}, True)
@example(TINY | {"images": [{"id": 1, "file_name": "a", "width": 10**400, "height": 1}]}, True)
def test_a_damaged_coco_file_is_read_whole_or_named(folder: Path, content: Any, labeled: bool) -> None:
    path = folder / "damaged.json"
    path.write_text(json.dumps(content))
    document = read_or_complain(lambda: read_coco_json(path, labeled=labeled), path)
    if document is not None:
        check_document(document)


@given(damaged(documents(file_names=st.just("a.png"))), st.booleans())
def test_a_source_of_a_damaged_coco_file_gives_samples_or_says_why_not(
    folder: Path, content: Any, labeled: bool
) -> None:
    path = folder / "source.json"
    path.write_text(json.dumps(content))
    source = read_or_complain(lambda: CocoSource(path, folder, labeled=labeled), path)
    for index in range(0 if source is None else len(source)):
        sample = read_or_complain(lambda place=index: source[place], source.path(index), (UnreadableImageError,))
        assert sample is None or sample.boxes_xyxy.isfinite().all()


@given(st.lists(st.just("a.png") | ODD_TEXT | TEXT, min_size=1, max_size=4), st.booleans())
def test_image_files_of_any_name_are_found_or_named(folder: Path, names: list[str], tells_folder: bool) -> None:
    path = folder / "names.json"
    images = [{"id": place, "file_name": name} for place, name in enumerate(names)]
    path.write_text(json.dumps({"images": images}))
    source = read_or_complain(lambda: CocoSource(path, folder if tells_folder else None, labeled=False), path)
    if "a.png" not in (names[0], names[len(names) // 2], names[-1]):
        assert source is None
    elif source is not None:
        for index, name in enumerate(names):
            place = Path("/") if name.startswith("/") else folder
            sample = read_or_complain(lambda place=index: source[place], place, (UnreadableImageError,))
            assert (sample is not None) == (name == "a.png")


@given(documents(), st.data())
def test_bytes_that_are_lost_or_changed_are_read_or_named(folder: Path, content: dict, data: st.DataObject) -> None:
    path = folder / "bytes.json"
    path.write_bytes(broken_bytes(json.dumps(content).encode(), data))
    document = read_or_complain(lambda: read_coco_json(path), path)
    if document is not None:
        check_document(document)


def broken_bytes(whole: bytes, data: st.DataObject) -> bytes:
    """Cut the end off, change up to four bytes, or both."""
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    for place in data.draw(st.lists(st.integers(0, max(len(broken) - 1, 0)), max_size=4)) if broken else ():
        broken[place] = data.draw(st.integers(0, 255))
    return bytes(broken)


@given(st.integers(1, 100_000) | st.integers(850, 1000), st.sampled_from(["root", "info", "images", "bbox", "id"]))
def test_nesting_of_any_depth_is_read_or_named(folder: Path, depth: int, place: str) -> None:
    path = folder / "deep.json"
    deep = "[" * depth + "]" * depth
    texts = {
        "root": deep,
        "info": f'{{"info": {deep}, "images": [{{"id": 1, "file_name": "a"}}], "annotations": [], "categories": []}}',
        "images": f'{{"images": {deep}, "annotations": [], "categories": []}}',
    }
    for key, before in (("bbox", '"image_id": 1, "category_id": 1'), ("id", "")):
        texts[key] = (
            '{"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "x"}], '
            f'"annotations": [{{{before}{", " if before else ""}"{key}": {deep}}}]}}'
        )
    path.write_text(texts[place])
    for read in (read_coco_json, lambda file: write_coco_splits(file, folder / "deep", percents=[50])):
        read_or_complain(lambda call=read: call(path), path)


# ---- Splits


@given(st.integers(1, 300), st.floats(0, 1, exclude_min=True), st.floats(0, 1, exclude_min=True), SEEDS, SEEDS)
def test_splits_are_complete_disjoint_repeatable_and_nested(
    count: int, one: float, other: float, fold: int, seed: int
) -> None:
    image_ids = [f"image {number}" for number in range(count)]
    small, large = sorted((one, other))
    labeled, unlabeled = labeled_subset(image_ids, fraction=small, fold=fold, seed=seed)
    assert sorted(labeled + unlabeled, key=image_ids.index) == image_ids
    assert len(labeled) == max(1, math.floor(round(small * count, 6)))
    assert [labeled, unlabeled] == [sorted(part, key=image_ids.index) for part in (labeled, unlabeled)]
    assert labeled_subset(image_ids, fraction=small, fold=fold, seed=seed) == (labeled, unlabeled)
    assert set(labeled) <= set(labeled_subset(image_ids, fraction=large, fold=fold, seed=seed)[0])


@given(st.floats() | st.integers(), st.integers() | st.integers(0, 2**33), st.integers() | st.just(0))
def test_wrong_arguments_of_a_split_are_named(fraction: float, fold: int, seed: int) -> None:
    try:
        labeled, unlabeled = labeled_subset([1, 2, 3], fraction=fraction, fold=fold, seed=seed)
    except ValueError as error:
        assert "fraction=" in str(error) or "fold=" in str(error)
    else:
        assert 0 < fraction <= 1 and fold >= 0 and seed >= 0 and sorted(labeled + unlabeled) == [1, 2, 3]


@given(documents(), st.sampled_from([10, 25.5, 50]), SEEDS)
def test_the_two_files_of_a_split_are_the_whole_file(folder: Path, content: dict, percent: float, fold: int) -> None:
    assume(len(content["images"]) > 1)
    path = folder / "whole.json"
    path.write_text(json.dumps(content))
    (split,) = write_coco_splits(path, folder / "split", percents=[percent], folds=[fold])
    parts = [json.loads(file.read_text()) for file in (split.labeled, split.unlabeled)]
    labeled, unlabeled = labeled_subset(
        [entry["id"] for entry in content["images"]], fraction=percent / 100, fold=fold
    )
    for part, image_ids in zip(parts, (labeled, unlabeled), strict=True):
        for key, id_key in (("images", "id"), ("annotations", "image_id")):
            assert part[key] == [entry for entry in content[key] if entry[id_key] in image_ids]
        assert part["categories"] == content["categories"] and part["info"] == content["info"]


@given(damaged(documents()) | JSON_VALUES)
def test_a_damaged_file_is_split_whole_or_named(folder: Path, content: Any) -> None:
    path = folder / "unsplit.json"
    path.write_text(json.dumps(content))
    splits = read_or_complain(lambda: write_coco_splits(path, folder / "parts", percents=[40], folds=[1]), path)
    for split in splits or ():
        parts = [json.loads(file.read_text()) for file in (split.labeled, split.unlabeled)]
        assert sum(len(part["images"]) for part in parts) == len(content["images"])
        assert sum(len(part["annotations"]) for part in parts) == len(content["annotations"])


@given(st.lists(st.integers() | st.text(max_size=5), max_size=6, unique=True))
def test_id_lists_come_back_as_they_were_written(folder: Path, image_ids: list[int | str]) -> None:
    path = folder / "ids.json"
    write_ids(path, image_ids)
    assert read_ids(path) == image_ids


@given(JSON_VALUES | st.lists(JSON_VALUES), st.data())
def test_damaged_id_lists_are_read_or_named(folder: Path, content: Any, data: st.DataObject) -> None:
    path = folder / "damaged ids.json"
    path.write_bytes(broken_bytes(json.dumps(content).encode(), data))
    image_ids = read_or_complain(lambda: read_ids(path), path)
    assert image_ids is None or len(set(image_ids)) == len(image_ids)


# ---- Pascal VOC

XML_NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=6)
XML_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t "), max_size=6
)


@st.composite
def records(draw: st.DrawFn) -> ElementTree.Element:
    """What a labeling tool writes about a picture of 40 x 30 pixels."""
    root = ElementTree.Element("annotation")
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", 40), ("height", 30), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    for _ in range(draw(st.integers(0, 3))):
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = draw(XML_NAMES)
        if draw(st.booleans()):
            ElementTree.SubElement(element, "difficult").text = draw(st.sampled_from("01"))
        box = ElementTree.SubElement(element, "bndbox")
        for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
            values = sorted([draw(st.integers(0, 45)), draw(st.integers(0, 45))])
            for tag, value in zip((low, high), values, strict=True):
                ElementTree.SubElement(box, tag).text = str(value)
    return root


def write_record(folder: Path, name: str, content: bytes) -> tuple[Path, Path]:
    """Write an XML file beside a picture, in a folder of their own; return both."""
    place = folder / name
    place.mkdir(exist_ok=True)
    if not (place / "a.png").exists():
        Image.new("RGB", (40, 30)).save(place / "a.png")
    (place / "a.xml").write_bytes(content)
    return place, place / "a.xml"


@given(records(), st.sampled_from(["exact", "written", "released"]))
def test_a_valid_voc_file_reads_back_as_it_is_written(folder: Path, root: ElementTree.Element, corners: Any) -> None:
    place, _ = write_record(folder, "voc", ElementTree.tostring(root, encoding="utf-8"))
    source = VocSource(place, corners=corners)
    truth = source.coco_ground_truth()
    names = dict(zip(source.category_ids, source.category_names, strict=True))
    read = [(names[entry["category_id"]], entry["bbox"], bool(entry["iscrowd"])) for entry in truth["annotations"]]
    expected = []
    for element in root.iter("object"):
        x1, y1, x2, y2 = (float(element.findtext(f"bndbox/{tag}") or 0) for tag in ("xmin", "ymin", "xmax", "ymax"))
        if corners == "released":
            x1, y1, x2, y2 = x1 - 1, y1 - 1, x2 - 1, y2 - 1
        elif corners == "exact":
            x1, y1 = max(x1 - 1, 0), max(y1 - 1, 0)
        expected.append((element.findtext("name"), [x1, y1, x2 - x1, y2 - y1], element.findtext("difficult") == "1"))
    assert read == expected
    as_coco = read_coco_json(voc_to_coco_json(place, None, place / "voc.json", corners=corners))
    assert [list(entry.bbox) for entry in as_coco.annotations.get(1, [])] == [box for _, box, _ in expected]


@given(records(), st.data())
def test_a_damaged_voc_file_is_read_whole_or_named(
    folder: Path, root: ElementTree.Element, data: st.DataObject
) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        parent = data.draw(st.sampled_from(list(root.iter())))
        match data.draw(st.sampled_from(["text", "text", "tag", "remove", "repeat"])):
            case "text":
                parent.text = data.draw(
                    XML_TEXT | st.sampled_from(["a\nb", "x" * 300, "1e999", "nan", "1e308", "-1e308", "-5", "0.5"])
                )
            case "tag":
                parent.tag = data.draw(st.sampled_from(["object", "size", "name", "bndbox", "x", "annotation"]))
            case "remove" if len(parent):
                parent.remove(data.draw(st.sampled_from(list(parent))))
            case "repeat" if len(parent):
                parent.append(data.draw(st.sampled_from(list(parent))))
    place, path = write_record(folder, "damaged voc", ElementTree.tostring(root, encoding="utf-8"))
    check_voc(place, path)


def check_voc(place: Path, path: Path) -> None:
    source = read_or_complain(lambda: VocSource(place), path)
    if source is not None:
        sample = read_or_complain(lambda: source[0], place / "a.png", (UnreadableImageError,))
        assert sample is None or sample.boxes_xyxy.isfinite().all()


@given(records(), st.data())
def test_bytes_of_a_voc_file_that_are_lost_or_changed_are_read_or_named(
    folder: Path, root: ElementTree.Element, data: st.DataObject
) -> None:
    encoding = data.draw(st.sampled_from(["utf-8", "utf-16", "latin-1", "us-ascii"]))
    whole = ElementTree.tostring(root, encoding=encoding, xml_declaration=True)
    check_voc(*write_record(folder, "voc bytes", broken_bytes(whole, data)))


@given(
    st.integers(1, 10),
    st.sampled_from(['SYSTEM "a.png"', 'SYSTEM "file:///etc/hostname"', "PUBLIC 'x' 'http://localhost/x'", "'text'"]),
    st.booleans(),
)
def test_entities_are_neither_expanded_nor_fetched(folder: Path, levels: int, kind: str, in_name: bool) -> None:
    declared = f"<!ENTITY e0 {kind}>" + "".join(
        f'<!ENTITY e{level} "{f"&e{level - 1};" * 10}">' for level in range(1, levels)
    )
    name = f"&e{levels - 1};" if in_name else "dog"
    content = f"<!DOCTYPE annotation [{declared}]><annotation><object><name>{name}</name></object></annotation>"
    place, path = write_record(folder, "entities", content.encode())
    with pytest.raises(ValueError, match="declares a document type") as caught:
        VocSource(place)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500


@given(st.lists(st.just("a") | ODD_TEXT | XML_TEXT | st.just("a 1"), max_size=4))
def test_an_image_set_of_any_lines_is_read_or_named(folder: Path, lines: list[str]) -> None:
    place = folder / "VOC2007"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (place / name).mkdir(parents=True, exist_ok=True)
    (place / "Annotations" / "a.xml").write_text(
        "<annotation><size><width>40</width><height>30</height></size></annotation>"
    )
    Image.new("RGB", (40, 30)).save(place / "JPEGImages" / "a.png")
    path = place / "ImageSets" / "Main" / "set.txt"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    for labeled in (True, False):
        # The name of a missing XML file may begin anywhere.
        named = Path("/") if any(line.strip().startswith("/") for line in lines) else place
        source = read_or_complain(lambda reads=labeled: VocSource(path, labeled=reads), named)
        assert source is None or source.image_ids == ["a"]


@given(st.sampled_from([10, 1000, 100_000]), st.sampled_from(["object", "a", "bndbox"]))
def test_xml_of_any_depth_is_read_or_named(folder: Path, depth: int, tag: str) -> None:
    size = "<size><width>40</width><height>30</height></size>"
    content = f"<annotation>{size}{f'<{tag}>' * depth}{f'</{tag}>' * depth}</annotation>"
    check_voc(*write_record(folder, "deep voc", content.encode()))


# ---- Pictures


@st.composite
def pictures(draw: st.DrawFn) -> bytes:
    """A small picture of any usual mode in any usual format."""
    size = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    kinds = [
        *(("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        *(("GIF", mode) for mode in ("L", "P")),
        *(("TIFF", mode) for mode in ("1", "L", "RGB", "CMYK", "I;16", "I", "F")),
        *(("BMP", mode) for mode in ("1", "L", "P", "RGB")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    ]
    kind, mode = draw(st.sampled_from(kinds))
    noise = np.random.default_rng(draw(SEEDS)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode) if mode != "I;16" else Image.new(mode, size, 300)
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9))
        options["exif"] = exif
    if kind == "GIF" and draw(st.booleans()):
        options |= {"save_all": True, "append_images": [image, image]}
    if kind in ("PNG", "GIF") and mode == "P" and draw(st.booleans()):
        options["transparency"] = draw(st.integers(0, 255) | st.binary(min_size=1, max_size=4))
        if kind == "GIF" and isinstance(options["transparency"], bytes):
            del options["transparency"]
    if kind in ("PNG", "TIFF", "JPEG") and draw(st.booleans()):
        options["dpi"] = (72, 72)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def load_or_complain(path: Path) -> Image.Image | None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = read_or_complain(lambda: load_image(path), path, (UnreadableImageError,))
    # Pillow itself may remark on odd metadata.
    assert [str(warning.message) for warning in caught if "/PIL/" not in warning.filename] == []
    if image is not None:
        assert image.mode == "RGB" and not image.info
        assert np.asarray(image).shape == (image.height, image.width, 3)
    return image


@given(pictures())
def test_a_whole_picture_is_read_as_rgb(folder: Path, content: bytes) -> None:
    path = folder / "picture"
    path.write_bytes(content)
    with Image.open(io.BytesIO(content)) as stored:
        is_float, sides = stored.mode == "F", sorted(stored.size)
    image = load_or_complain(path)
    if is_float:
        assert image is None
    else:
        assert image is not None and sorted(image.size) == sides


@given(pictures(), st.data())
def test_a_broken_picture_is_read_or_named(folder: Path, content: bytes, data: st.DataObject) -> None:
    path = folder / "broken picture"
    path.write_bytes(broken_bytes(content, data))
    load_or_complain(path)


@given(
    st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\x00", b"BM", b"RIFF\0\0\0\0WEBP"]
    ),
    st.binary(max_size=64),
)
def test_what_is_no_picture_is_named(folder: Path, start: bytes, rest: bytes) -> None:
    path = folder / "no picture"
    path.write_bytes(start + rest)
    load_or_complain(path)
