from __future__ import annotations

import io
import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from resnetlab.data.audit import audit
from resnetlab.data.pack import pack
from resnetlab.data.preprocess import ImageProblem, decode, fit_square
from resnetlab.data.sources import resolve
from resnetlab.errors import ResnetlabError


def _reason(content: bytes, size: int | None = None) -> str:
    with pytest.raises(ImageProblem) as caught:
        decode(content, size=size)
    return str(caught.value)


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(decode(content).image)


# ---------------------------------------------------------------------------------------- what cannot be used


def test_unusable_files_are_told_apart(make):
    damaged = bytearray(make.encode(make.picture(), "PNG"))
    damaged[len(damaged) // 2] ^= 0xFF
    assert _reason(b"") == "empty file"
    assert _reason(b"Dear photograph, " * 50) == "not an image"
    assert _reason(make.jpeg()[:5]) == "truncated"
    assert _reason(b"\xff\xd8\xff" + bytes(50) + b"\xff\xd9") == "corrupt"
    assert _reason(bytes(damaged)) == "corrupt"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_truncation_is_found_in_every_format(make, format):
    whole = make.encode(make.picture(), format)
    for share in (0.5, 0.9):
        assert _reason(whole[: int(len(whole) * share)]) == "truncated"


@pytest.mark.parametrize("progressive", [False, True])
def test_decoding_at_a_reduced_size_finds_the_same_damage(make, progressive):
    whole = make.jpeg(size=(300, 225), progressive=progressive)
    assert decode(whole, size=32).image.size == (75, 57)  # reduced indeed: 225 // 32 is 7, so by 4
    for cut in range(len(whole) - 2, 200, -len(whole) // 23):
        assert _reason(whole[:cut], size=32) == _reason(whole[:cut]) == "truncated"


def test_an_enormous_image_is_refused_by_its_header(make):
    assert (
        _reason(make.enormous_png()) == "too many pixels (20000x20000; the limit is 200,000,000, $RESNETLAB_MAX_PIXELS)"
    )
    assert _reason(make.enormous_png(15_000)) == (
        "too many pixels (15000x15000; the limit is 200,000,000, $RESNETLAB_MAX_PIXELS)"
    )


def test_unreadable_paths(tmp_path):
    with pytest.raises(ImageProblem, match=r"unreadable \(No such file"):
        decode(tmp_path / "gone.jpg")


# ----------------------------------------------------------------------------------------- what is converted


def test_plain_images_are_not_touched(make):
    png = make.encode(make.picture(), "PNG")
    assert decode(png).conversions == ()
    np.testing.assert_array_equal(_pixels(png), np.asarray(make.picture()))


def test_cmyk_and_grey(make):
    cmyk, grey = decode(make.cmyk_jpeg()), decode(make.grey_jpeg())
    assert (cmyk.conversions, grey.conversions) == (("CMYK",), ("grey",))
    error = np.asarray(cmyk.image).astype(int) - np.asarray(make.picture())
    assert np.abs(error).mean() < 4  # an inverted one would be far off
    luma = np.asarray(make.picture().convert("L")).astype(int)
    assert np.abs(np.asarray(grey.image)[..., 1] - luma).mean() < 4


def test_16_bit_is_scaled_not_clipped(make):
    decoded = decode(make.grey16_png())
    assert decoded.conversions == ("16-bit", "grey")
    ramp = np.asarray(decoded.image)[0, :, 0]
    np.testing.assert_array_equal(ramp, np.linspace(0, 65535, 48).astype(np.uint16) >> 8)
    pgm = b"P5 2 1 65535 " + (32768).to_bytes(2, "big") + (65535).to_bytes(2, "big")
    assert _pixels(pgm)[0, :, 0].tolist() == [128, 255]


def test_transparency_is_laid_over_white(make):
    palette, alpha = decode(make.palette_png()), decode(make.alpha_png())
    assert (palette.conversions, alpha.conversions) == (("alpha",), ("alpha",))
    assert [palette.image.getpixel((x, 5)) for x in (2, 45)] == [(255, 0, 0), (255, 255, 255)]
    assert alpha.image.getpixel((5, 5)) == (127, 127, 127)


def test_floats_and_single_bits(make):
    assert decode(make.float_tiff()).conversions == ("float", "grey")
    assert _pixels(make.float_tiff())[0, 0].tolist() == [128] * 3
    bits = make.encode(Image.new("1", (9, 9), 1), "PNG")
    assert _pixels(bits)[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(make, format):
    decoded = decode(make.animation(format))
    assert "first frame of several" in decoded.conversions
    assert decoded.image.getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("size", [None, 16])
def test_exif_orientation_turns_the_picture_upright(make, orientation, size):
    decoded = decode(make.rotated_jpeg(orientation), size=size)
    assert decoded.conversions == ("EXIF orientation",)
    assert (decoded.width, decoded.height) == make.SIZE
    width, height = decoded.image.size
    assert width > height
    left, right = (decoded.image.getpixel((x, height // 2)) for x in (1, width - 2))
    assert left[0] > 200 > 50 > left[2]
    assert right[2] > 200 > 50 > right[0]


def test_decoding_from_many_threads_leaves_the_process_as_it_was(make):
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    large = make.enormous_png(9_500)[:200]  # 90 million pixels, by its header: here Pillow warns
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(large))
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(decode, content) for content in [large, make.jpeg(), make.alpha_png()] * 20]
    assert [str(future.exception()) for future in futures] == ["truncated", "None", "None"] * 20
    assert list(warnings.filters) == filters
    assert limit == Image.MAX_IMAGE_PIXELS


# ------------------------------------------------------------------------------------------------ fit_square


def test_fit_square_leaves_the_right_size_untouched(make):
    image = make.picture(size=(32, 32))
    np.testing.assert_array_equal(fit_square(image, 32), np.asarray(image))


def test_fit_square_takes_the_centre_and_keeps_proportions():
    image = Image.new("RGB", (90, 30), "red")
    image.paste("lime", (30, 0, 60, 30))
    centre = fit_square(image, 15)[:, 1:-1]  # at its very edge the filter reaches over it
    np.testing.assert_array_equal(centre, np.full((15, 13, 3), (0, 255, 0)))
    assert fit_square(image, 64).shape == (64, 64, 3)  # enlarged


def test_fit_square_antialiases():
    checks = Image.fromarray(np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    assert np.ptp(fit_square(checks, 8)[1:-1, 1:-1]) < 10  # a point sample would be black and white


# ----------------------------------------------------------------------------------------------------- audit


@pytest.fixture
def messy(make, tmp_path):
    """Eight defects, seven things to convert and a few copies among sound images of cats and dogs."""
    root = make.write_classes(tmp_path / "messy", {"cat": 4, "dog": 4})
    files = {
        "cat/empty.jpg": b"",
        "cat/text.jpg": b"not a picture at all",
        "cat/cut.jpg": make.jpeg(50)[:900],
        "cat/enormous.png": make.enormous_png(),
        "cat/cmyk.jpg": make.cmyk_jpeg(51),
        "cat/grey16.png": make.grey16_png(),
        "dog/palette.png": make.palette_png(),
        "dog/animation.gif": make.animation(),
        "dog/rotated.jpg": make.rotated_jpeg(6),
        "dog/grey.jpg": make.grey_jpeg(52),
        "dog/copy.jpg": make.jpeg(4),  # of dog/0.jpg
        "cat/both.jpg": make.jpeg(60),
        "dog/both.jpg": make.jpeg(60),
    }
    for name, content in files.items():
        (root / name).write_bytes(content)
    (root / "cat" / "dangling.jpg").symlink_to(root / "gone.jpg")
    return root


def test_the_audit_report(messy):
    calls = []
    report = audit(resolve(str(messy)), workers=3, progress=lambda done, total: calls.append((done, total)))
    assert {record.name: record.problem for record in report.set_aside} == {
        "cat/both.jpg": "two labels (cat, dog)",
        "cat/cut.jpg": "truncated",
        "cat/dangling.jpg": "unreadable (No such file or directory)",
        "cat/empty.jpg": "empty file",
        "cat/enormous.png": "too many pixels (20000x20000; the limit is 200,000,000, $RESNETLAB_MAX_PIXELS)",
        "cat/text.jpg": "not an image",
        "dog/both.jpg": "two labels (cat, dog)",
    }
    assert report.class_counts == {"cat": 6, "dog": 9}
    assert report.duplicates == [["dog/0.jpg", "dog/copy.jpg"]]
    assert report.conflicts == [["cat/both.jpg", "dog/both.jpg"]]
    assert report.conversions == {
        "grey": 2,
        "CMYK": 1,
        "16-bit": 1,
        "palette": 1,  # the GIF
        "first frame of several": 1,
        "alpha": 1,
        "EXIF orientation": 1,
    }
    assert calls[-1] == (22, 22)

    told = json.loads(json.dumps(report.to_json()))
    assert (told["found"], told["usable"], len(told["set_aside"])) == (22, 15, 7)
    assert {"name": "cat/cut.jpg", "class": "cat", "problem": "truncated"} in told["set_aside"]
    summary = report.summary()
    for line in (
        "15 usable images of 22",
        "from 6 (cat) to 9 (dog)",
        "cat/both.jpg (cat, dog)",
        "truncated: 1",
    ):
        assert line in summary


def test_images_that_show_nothing_are_listed_and_used(make, tmp_path):
    root = make.write_classes(tmp_path / "data", {"cat": 2, "dog": 2})
    noise = np.random.default_rng(0).integers(0, 256, (200, 300), np.uint8)
    dot = np.zeros_like(noise)
    dot[:12, :12] = noise[:12, :12]  # 0.2 % of it
    files = {
        "constant": np.full_like(noise, 90),
        "black": dot,
        "white": 255 - dot,
        "levels": noise // 16,
        "two": np.uint8(255) * (noise > 99),
        "dark": noise // 8 + 4,  # of 32 levels, up to 35
        "sparse": np.where(np.arange(300) < 12, noise, 0).astype(np.uint8),  # black but for 4 %
    }
    for name, values in files.items():
        Image.fromarray(values).save(root / "cat" / f"{name}.png")
    Image.new("RGB", (900, 700), "navy").save(root / "dog" / "blue.jpg")
    (root / "dog" / "small.jpg").write_bytes(make.jpeg(5, (9, 9)))  # at an eighth it is one or four pixels
    source = resolve(str(root))
    report = audit(source)
    expected = {
        "cat/black.png": "nearly black",
        "cat/constant.png": "constant",
        "cat/levels.png": "few levels (16 of 256)",
        "cat/two.png": "few levels (2 of 256)",
        "cat/white.png": "nearly white",
        "dog/blue.jpg": "constant",
    }
    assert {record.name: record.suspicious for record in report.suspicious} == expected
    assert report.set_aside == ()
    assert len(report.usable) == 13
    packed = pack(source, size=16, cache_dir=tmp_path / "cache", validation=0.1, test=0.1)
    assert {row["name"]: row["reason"] for row in packed.audit["suspicious"]} == expected
    assert {"name": "dog/blue.jpg", "class": "dog", "reason": "constant"} in report.to_json()["suspicious"]
    lines = report.summary().splitlines()
    at = lines.index("  suspicious  6 (used all the same)")
    assert "    few levels: 2" in lines[at:]
    assert "      cat/levels.png (16 of 256)" in lines[at:]


def test_the_number_of_workers_changes_nothing(messy):
    one, many = (audit(resolve(str(messy)), workers=workers) for workers in (1, 5))
    assert one.records == many.records


def test_a_class_with_nothing_usable_is_an_error(make, tmp_path):
    root = make.write_classes(tmp_path, {"cat": 2, "dog": 0})
    for index in range(3):
        (root / "dog" / f"{index}.jpg").write_text("woof")
    (root / "dog" / "3.jpg").touch()
    with pytest.raises(ResnetlabError, match=r"class 'dog' .*\(3 not an image, 1 empty file\).*Expected at least"):
        audit(resolve(str(root)))


def test_a_copy_of_a_test_image_is_not_trained_on(make, tmp_path):
    for part, start in (("train", 0), ("val", 10), ("test", 20)):
        make.write_classes(tmp_path / part, {"cat": 2, "dog": 2}, start=start)
    (tmp_path / "train" / "cat" / "leak.jpg").write_bytes(make.jpeg(20))
    report = audit(resolve(str(tmp_path)))
    assert [(r.name, r.problem) for r in report.set_aside] == [
        ("train/cat/leak.jpg", "copy of a test image (test/cat/20.jpg)")
    ]


def test_arrays_are_audited_by_their_pixels():
    report = audit(resolve("digits"))
    assert len(report.records) == 1797
    assert len(report.usable) == 1797
    assert (report.records[0].width, report.records[0].height) == (8, 8)
    assert len({record.sha256 for record in report.records}) == 1797


def test_the_animals_sample_is_sound(real_data):
    report = audit(resolve("animals10", data_root=real_data))
    assert set(report.class_counts.values()) == {24}


def test_lossless_webp_decodes_to_its_pixels(make):
    image = make.picture(3, (32, 32))
    content = make.encode(image, "WEBP", lossless=True)
    assert np.array_equal(fit_square(decode(io.BytesIO(content).getvalue(), size=32).image, 32), np.asarray(image))


def test_a_rotated_tiff_has_the_size_that_it_is_shown_in():
    """Pillow turns a TIFF itself, and states its size so."""
    tall = Image.new("RGB", (40, 20), (10, 200, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    tall.save(file, "TIFF", exif=exif)
    found = decode(file.getvalue())
    assert found.image.size == (found.width, found.height) == (20, 40)


def test_a_progressive_jpeg_may_have_a_film_behind_it(make):
    """In a film, the two bytes that begin a scan occur by chance, once in 65,536."""
    film = np.random.default_rng(0).integers(0, 256, 12 << 20, np.uint8).tobytes()
    assert film.count(b"\xff\xda") > 150
    assert decode(make.jpeg(progressive=True) + film).image.size == make.picture().size
