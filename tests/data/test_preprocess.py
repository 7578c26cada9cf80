"""Files of every kind show what they were made of, whatever their encoding; what cannot be used says why."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetlab.data import preprocess
from resnetlab.data.preprocess import ImageProblem, decode, fit_square, load_image
from tests.data.odd_images import Odd, corpus, png, tiff

if importlib.util.find_spec("pillow_heif") is None:
    pytest.skip("needs pillow-heif, to write HEIC files", allow_module_level=True)

import pillow_heif

pillow_heif.register_heif_opener()
CORPUS = corpus()


@pytest.mark.parametrize("odd", CORPUS.values(), ids=CORPUS)
def test_a_file_shows_its_picture(odd: Odd) -> None:
    read = load_image(odd.content, shorter_side=27, centre_crop=24)
    expected = fit_square(Image.fromarray(odd.shown), 27)[1:25, 1:25]
    assert np.abs(read.astype(int) - expected).max() <= odd.tolerance


def test_the_range_that_was_taken_is_reported() -> None:
    found = {name: decode(CORPUS[name].content).conversions for name in CORPUS}
    assert found["png, 16 bits"] == ("16-bit", "grey")
    assert found["png, 12 of 16 bits"] == ("16-bit", "scaled from 12 bits", "grey")
    assert found["png, RGB of 12 of 16 bits"] == ("16-bit", "scaled from 12 bits")
    assert found["png, sBIT 12, dark"] == ("16-bit", "scaled from the declared range", "grey")
    assert found["tiff, int32"] == ("32-bit", "scaled from minimum to maximum", "grey")
    assert found["tiff, floats to 1"] == ("float", "grey")


def _reason(content: bytes) -> str:
    with pytest.raises(ImageProblem) as caught:
        decode(content)
    return str(caught.value)


def test_what_has_no_picture_in_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(0, 1, 40 * 48, dtype=np.float32).reshape(40, 48)
    values[3, 4:7] = np.nan, np.inf, -np.inf
    assert _reason(tiff(values)) == "values that are not finite (3 of 1,920)"
    odd = "a TIFF that Pillow cannot read"
    assert _reason(tiff(values.astype(np.float64))) == f"{odd} (1 x 64 bits, float, a pixel)"
    assert _reason(tiff(np.dstack([values] * 3))) == f"{odd} (3 x 32 bits, float, a pixel)"
    assert _reason(tiff(np.zeros((4, 4, 5), np.uint16), extra=[0, 0, 0])) == f"{odd} (5 x 16 bits, unsigned, a pixel)"
    jpeg = CORPUS["jpeg"].content.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
    assert _reason(jpeg) == "a JPEG that Pillow cannot read (12 bits a sample)"
    planar = tiff(np.zeros((4, 4, 4), np.uint16), photometric=5, planar=True)
    assert _reason(planar) == f"{odd} (4 x 16 bits, unsigned, a pixel)"
    assert _reason(tiff(values)[:-40]) == _reason(tiff(values)[:60]) == "truncated"
    assert _reason(CORPUS["png, RGB of 12 of 16 bits"].content[:-900]) == "truncated"
    assert _reason(CORPUS["ppm, 12 of 16 bits"].content[:-1]) == "truncated"
    for name in ("heic", "avif"):
        content = CORPUS[name].content
        assert {_reason(content[:length]) for length in (20, 200, len(content) // 2, len(content) - 9)} == {"truncated"}
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert _reason(CORPUS["heic, called jpg"].content).startswith("HEIC needs pillow-heif (do: pip install pillow-heif")
    assert decode(CORPUS["avif"].content).width == 60


def test_the_limit_of_pixels_is_a_setting(make, monkeypatch: pytest.MonkeyPatch) -> None:
    content = make.jpeg(size=(60, 50))
    monkeypatch.setenv("RESNETLAB_MAX_PIXELS", "2999")
    assert _reason(content) == "too many pixels (60x50; the limit is 2,999, $RESNETLAB_MAX_PIXELS)"
    monkeypatch.setenv("RESNETLAB_MAX_PIXELS", "3000")
    assert decode(content).width == 60
    for wrong in ("many", "0", "-1", "2e8"):
        monkeypatch.setenv("RESNETLAB_MAX_PIXELS", wrong)
        assert _reason(content).startswith(f"RESNETLAB_MAX_PIXELS is {wrong!r} (expected a whole number")


def test_settings_that_make_no_sense_are_refused(make) -> None:
    for settings in ({"centre_crop": 28}, {"centre_crop": 0}, {"centre_crop": 24, "interpolation": "cubic"}):
        with pytest.raises(ValueError, match=r"Received (centre_crop|interpolation)=.*, expected"):
            load_image(make.jpeg(), **{"shorter_side": 27} | settings)


MEASURE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from preprocess import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixels = load_image(sys.argv[2], shorter_side=256, centre_crop=224)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, pixels.mean(), "resnetlab" in sys.modules)
"""


def _peak(file: Path) -> tuple[float, float]:
    """MB that loading a file adds to a process that has nothing but a copy of preprocess.py, and the pixels' mean."""
    (file.parent / "preprocess.py").write_bytes(Path(preprocess.__file__).read_bytes())
    command = [sys.executable, "-c", MEASURE, str(file.parent), str(file)]
    kilobytes, mean, imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert imported == "False"
    return int(kilobytes) / 1000, float(mean)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kilobytes")
def test_a_photograph_of_108_megapixels_is_decoded_in_bounded_memory(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((12_000, 9_000)).save(tmp_path / "photo.jpg")
    megabytes, mean = _peak(tmp_path / "photo.jpg")
    assert megabytes < 60  # whole it is 108 MB in grey, and 324 MB in RGB
    assert 120 < mean < 135


def test_faint_alpha_of_16_bits_is_as_faint_as_of_8(tmp_path: Path) -> None:
    found = []
    for bits in (8, 16):
        kind, scale = (np.uint16, 257) if bits == 16 else (np.uint8, 1)
        path = tmp_path / f"{bits}.png"
        path.write_bytes(png((np.full((8, 8, 4), [255, 0, 0, 39]) * scale).astype(kind)))
        found.append(load_image(path, shorter_side=8, centre_crop=8))
    np.testing.assert_array_equal(*found)
    assert (found[0].max(), found[0].min()) == (255, 255 - 39)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kilobytes")
def test_alpha_is_composited_in_strips(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("LA", (6_000, 6_000), (0, 128)).save(content, "PNG", compress_level=1)
    (tmp_path / "large.png").write_bytes(content.getvalue())
    megabytes, mean = _peak(tmp_path / "large.png")
    assert mean == 127
    assert megabytes < 650  # LA and RGB are 196 MB each; all of it in RGBA at once, over white, would be 590 MB more
