from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from semidetr_hf.data.images import (
    EXIF_ORIENTATION,
    PackedImage,
    UnreadableImageError,
    ViewSize,
    is_missing,
    load_for_view,
    load_image,
    stored_size,
)


def save_rotated(path: Path) -> None:
    """Store 40x20 pixels, red on the left, that a viewer turns a quarter (orientation 6) into 20x40, red on top."""
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, :20] = (255, 0, 0)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[EXIF_ORIENTATION] = 6
    image.save(path, exif=exif)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(".png", mode) for mode in ("1", "L", "LA", "P", "RGBA")]
    + [(".tif", mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK")]
    + [(".jpg", mode) for mode in ("L", "CMYK")],
)
def test_every_mode_becomes_rgb(tmp_path: Path, suffix: str, mode: str) -> None:
    file = tmp_path / f"x{suffix}"
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(file)
    image = load_image(file)
    assert image.mode == "RGB" and image.size == (6, 4)
    assert np.asarray(image).min() > 240  # white stays white, also from CMYK


def test_palette_with_transparency_gives_its_colors(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "p.png", transparency=bytes([255, 0]))
    assert load_image(tmp_path / "p.png").getpixel((0, 0)) == (10, 200, 30)


def test_16_bit_is_scaled_not_clipped(tmp_path: Path) -> None:
    # 0, 257 * 100 and 65535 of 65535 are 0, 100 and 255 of 255
    Image.fromarray(np.array([[0, 25700, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 100, 255]


def test_exif_orientation_is_applied_unless_the_annotations_were_made_without(tmp_path: Path) -> None:
    file = tmp_path / "turned.jpg"
    save_rotated(file)
    unknown, turned, stored = load_image(file), load_image(file, (40, 20)), load_image(file, (20, 40))
    assert unknown.size == turned.size == (20, 40) and stored.size == (40, 20)
    assert unknown.getpixel((10, 5))[0] > 200 and unknown.getpixel((10, 35))[0] < 50
    assert stored.getpixel((5, 10))[0] > 200 and stored.getpixel((35, 10))[0] < 50


@pytest.mark.parametrize("expected_size", [None, (40, 20), (20, 40)])
def test_a_read_picture_is_not_turned_again(tmp_path: Path, expected_size: tuple[int, int] | None) -> None:
    save_rotated(tmp_path / "turned.jpg")
    image = load_image(tmp_path / "turned.jpg", expected_size)
    assert image.info == {} and dict(image.getexif()) == {}
    assert ImageOps.exif_transpose(image).size == image.size


def test_an_orientation_in_xmp_is_not_kept_either(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.png", pnginfo=text)
    assert load_image(tmp_path / "turned.png").size == (20, 40)
    assert ImageOps.exif_transpose(load_image(tmp_path / "turned.png", (20, 40))).size == (40, 20)


def test_square_picture_is_turned(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20))
    image.paste((255, 0, 0), (0, 0, 10, 20))
    exif = image.getexif()
    exif[EXIF_ORIENTATION] = 6
    image.save(tmp_path / "square.png", exif=exif)
    assert load_image(tmp_path / "square.png", (20, 20)).getpixel((15, 2)) == (255, 0, 0)


def test_wrong_size_names_both_sizes(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "x.png")
    with pytest.raises(UnreadableImageError, match=r"x\.png.*30x20.*31x20"):
        load_image(tmp_path / "x.png", (20, 31))


def test_unusable_files_name_path_and_reason(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 80).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:600])
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    for name, reason in [
        ("cut.png", "not a readable image"),
        ("text.jpg", "cannot identify"),
        ("empty.png", "cannot identify"),
        ("float.tif", "floating-point"),
        ("missing.png", "does not exist"),
    ]:
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_name_with_line_breaks_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        load_image(tmp_path / "first\nsecond.png")
    assert str(caught.value).startswith(rf"{tmp_path}/first\nsecond.png: the image file does not exist")


# Pictures no larger than their views need ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "view", "reduction"),
    [
        # The short edge decides: 1200x800 becomes 150x100, an eighth. A quarter is twice as large, an eighth equal.
        ((1200, 800), ViewSize(100, 200), 4),
        # The long edge decides: 1600x800 becomes 200x100 though the short edge could be 200.
        ((1600, 800), ViewSize(200, 200), 4),
        # 150x100 would be enlarged 1.5 times from an eighth of 1800x1200, which is just what is asked for.
        ((1800, 1200), ViewSize(100, 150), 8),
        ((1800, 1200), ViewSize(101, 152), 4),
        # 4 does not divide 1202, 2 does not divide 1201.
        ((1202, 800), ViewSize(100, 200), 2),
        ((1201, 800), ViewSize(100, 200), 1),
        # Two thirds are left: half would be too small.
        ((300, 300), ViewSize(200, 200), 1),
        ((30, 20), ViewSize(100, 200), 1),
    ],
)
def test_a_jpeg_is_read_as_small_as_its_views_allow(tmp_path: Path, size, view: ViewSize, reduction: int) -> None:
    Image.effect_noise(size, 50).convert("RGB").save(tmp_path / "x.jpg")
    image, found = load_for_view(tmp_path / "x.jpg", size[::-1], view)
    assert found == reduction
    assert image.size == (size[0] // reduction, size[1] // reduction)
    if reduction == 1:
        assert np.array_equal(np.asarray(image), np.asarray(load_image(tmp_path / "x.jpg")))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_other_formats_are_read_whole(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (800, 800), (9, 8, 7)).save(tmp_path / f"x{suffix}")
    image, reduction = load_for_view(tmp_path / f"x{suffix}", None, ViewSize(50, 50))
    assert reduction == 1 and image.size == (800, 800)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_kind_of_jpeg_can_be_reduced(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (800, 800), (255, 255, 255)).convert(mode).save(tmp_path / "x.jpg", progressive=True)
    image, reduction = load_for_view(tmp_path / "x.jpg", None, ViewSize(50, 50))
    assert reduction == 8 and image.size == (100, 100)
    assert image.mode == "RGB" and np.asarray(image).min() > 240


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_picture_is_turned_like_the_whole_one(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((160, 320, 3), dtype=np.uint8)
    pixels[:80, :80] = (255, 0, 0)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[EXIF_ORIENTATION] = orientation
    image.save(tmp_path / "x.jpg", exif=exif, quality=95)
    whole = load_image(tmp_path / "x.jpg")
    reduced, factor = load_for_view(tmp_path / "x.jpg", (whole.height, whole.width), ViewSize(20, 40))
    assert factor == 4 and (reduced.width * 4, reduced.height * 4) == whole.size
    # Each pixel is the mean of 4x4 of the whole picture, up to what the coding lost.
    expected = np.asarray(whole).reshape(reduced.height, 4, reduced.width, 4, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(reduced) - expected).mean() < 2
    assert stored_size(tmp_path / "x.jpg") == (whole.height, whole.width)
    # Boxes drawn on the stored picture keep it as it is stored.
    as_stored, _ = load_for_view(tmp_path / "x.jpg", (160, 320), ViewSize(20, 40))
    assert as_stored.size == (80, 40)


def test_the_size_of_the_whole_picture_is_compared_with_the_annotations(tmp_path: Path) -> None:
    Image.new("RGB", (1600, 1200)).save(tmp_path / "x.jpg")
    # 1201 halved is 600 and a half: nothing that is seen of the reduced picture tells it from 1200.
    with pytest.raises(UnreadableImageError, match=r"x\.jpg.*1600x1200.*1600x1201"):
        load_for_view(tmp_path / "x.jpg", (1201, 1600), ViewSize(300, 400))


def test_a_large_jpeg_that_was_cut_off_is_told_from_a_whole_one(tmp_path: Path) -> None:
    Image.effect_noise((1600, 1200), 50).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableImageError, match=r"x\.jpg: not a readable image"):
        load_for_view(tmp_path / "x.jpg", None, ViewSize(100, 100))


def test_the_size_of_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    assert stored_size(tmp_path / "x.jpg") is None and stored_size(tmp_path / "missing.jpg") is None


# ---- Images without a file of their own


def packed(content: bytes | OSError) -> PackedImage:
    def read() -> bytes:
        if isinstance(content, OSError):
            raise content
        return content

    return PackedImage("set.tar/a.png", "a.png", read)


def test_an_image_in_an_archive_is_read_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((64, 32), 50).convert("CMYK").save(path, exif=exif)
    image = packed(path.read_bytes())
    assert load_image(image).tobytes() == load_image(path).tobytes() and load_image(image).size == (32, 64)
    assert stored_size(image) == stored_size(path) == (64, 32)
    assert load_for_view(image, None, ViewSize(8, 8))[1] == load_for_view(path, None, ViewSize(8, 8))[1] > 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"broken", r"^set\.tar/a\.png: not a readable image"),
        (OSError("the row has no image"), r"^set\.tar/a\.png: not a readable image \(the row has no image\)"),
        (FileNotFoundError("gone"), r"^set\.tar/a\.png: the image file does not exist"),
    ],
)
def test_a_broken_image_in_an_archive_is_named(content: bytes | OSError, complaint: str) -> None:
    with pytest.raises(UnreadableImageError, match=complaint):
        load_image(packed(content))
    assert stored_size(packed(content)) is None


def test_only_files_can_be_missing(tmp_path: Path) -> None:
    assert is_missing(tmp_path / "a.png") and not is_missing(tmp_path) and not is_missing(packed(b""))
