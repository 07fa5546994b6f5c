"""What the values of a picture mean: one rule for a data set, overshoot clipped, doubt refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from ecsfusion import ArrayProcessor, FusionProcessor
from ecsfusion.data.media import read_audio, read_image, read_video

RAMP = np.linspace(0.0, 1.0, 64).reshape(8, 8)


def values(image: object, **options: object) -> np.ndarray:
    return np.asarray(read_image(image, **options)).astype(int)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("gain", [1.0, 1.02, 1.31])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_overshoot_of_floats_is_clipped(gain, kind):
    expected = np.round(np.clip(RAMP * gain, 0, 1) * 255)
    assert np.abs(values((RAMP * gain).astype(kind)) - expected).max() <= 1
    assert values(torch.from_numpy(RAMP - 0.1)).min() == 0


def test_a_float_image_does_not_change_its_meaning_with_one_pixel():
    dark = np.full((8, 8), 1.0, np.float32)
    assert values(dark).max() == 255
    dark[0, 0] = 2.0
    with pytest.raises(
        ValueError, match=r"float32 has values from 1\.0 to 2\.0, outside of 0\.\.1.*value_ranges"
    ):
        read_image(dark)
    assert values(dark, value_range=(0, 255)).max() == 2


def test_sixteen_and_twelve_bits_keep_their_range():
    deep, twelve = np.round(RAMP * 65535).astype(np.uint16), np.round(RAMP * 4095).astype(np.uint16)
    expected = np.round(RAMP * 255)
    for image in (deep, Image.fromarray(deep), png(deep), torch.from_numpy(deep)):
        assert np.abs(values(image) - expected).max() <= 1
    for image in (twelve, Image.fromarray(twelve), png(twelve)):
        assert np.abs(values(image, value_range=(0, 4095)) - expected).max() <= 1
        with pytest.raises(
            ValueError, match=r"16 bits but no value above 4095.*value_ranges=\{name: \(0, 4095\)\}"
        ):
            read_image(image)
    assert not values(np.zeros((8, 8), np.uint16)).any()
    signed = np.round(RAMP * 3000 - 1000).astype(np.int16)
    assert np.abs(values(signed, value_range=(-1000, 2000)) - expected).max() <= 1
    for array in (signed, deep.astype(np.int32)):
        with pytest.raises(ValueError, match=r"outside of 0\.\.255"):
            read_image(array)
    with pytest.raises(ValueError, match=r"outside of 0\.\.4095"):
        read_image(deep, value_range=(0, 4095))


def test_modes_of_more_than_eight_bits_are_read_by_a_range():
    wide, real = Image.fromarray((RAMP * 4095).astype(np.int32)), Image.fromarray(RAMP.astype(np.float32))
    assert (wide.mode, real.mode) == ("I", "F")
    with pytest.raises(ValueError, match="mode 'I', whose range is not known"):
        read_image(wide)
    assert np.abs(values(wide, value_range=(0, 4095)) - RAMP * 255).max() <= 1
    assert np.abs(values(real) - RAMP * 255).max() <= 1
    frames = read_video([wide, wide], value_range=(0, 4095))
    assert np.abs(np.asarray(frames[1]) - RAMP * 255).max() <= 1


def test_booleans_are_black_and_white_and_eight_bits_are_themselves():
    assert sorted(set(values(RAMP > 0.5).flat)) == [0, 255]
    eight = np.round(RAMP * 255).astype(np.uint8)
    assert np.array_equal(values(eight), eight)
    assert np.array_equal(values(eight.astype(np.int64)), eight)
    assert sorted(set(values(np.eye(8, dtype=np.uint8), value_range=(0, 1)).flat)) == [0, 255]


def make_processor(**ranges: object) -> FusionProcessor:
    pictures = ViTImageProcessor(do_resize=False, image_mean=[0.0], image_std=[1.0])
    return FusionProcessor({"scan": pictures, "table": ArrayProcessor()}, ranges or None)


@pytest.mark.parametrize("mode", ["1", "LA", "P", "PA", "CMYK", "HSV", "YCbCr"])
def test_modes_whose_values_are_no_brightness_are_converted(mode):
    """Where the processor does not say how many channels it wants."""
    picture = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (8, 4)))
    read = read_image(
        picture.convert("P").convert(mode) if mode == "PA" else picture.convert("RGB").convert(mode)
    )
    assert read.mode == ("L" if mode in ("1", "LA") else "RGB")
    assert np.abs(np.asarray(read.convert("L")).astype(int) - np.asarray(picture)).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA", "P", "L", "RGB"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_transparent_places_are_white_whatever_is_hidden_there(mode, num_channels):
    """The left half can be seen, the right half cannot."""
    values = np.zeros((4, 6, 4), np.uint8)
    values[:, :3] = [40, 40, 40, 255]
    values[:, 3:] = [200, 10, 10, 0]
    image = Image.fromarray(values)
    if mode in ("LA", "La"):
        image = image.convert("LA").convert(mode)
    elif mode == "RGBa":
        image = image.convert("RGBa")
    elif mode == "PA":
        image = image.convert("P").convert("PA")
        image.putalpha(Image.fromarray(values[..., 3]))
    elif mode != "RGBA":
        # Files of these modes name one colour that is transparent.
        image = image.convert("RGB").quantize() if mode == "P" else image.convert("RGB").convert(mode)
        image.info["transparency"] = image.getpixel((5, 0))
    file = io.BytesIO()
    if mode in ("P", "L", "RGB"):
        image.save(file, "PNG", transparency=image.info["transparency"])
    found = np.asarray(read_image(file.getvalue() or image, num_channels))
    assert abs(int(found[0, 0].max()) - 40) <= 1
    assert (found[:, 3:] == 255).all()


def test_the_transparent_grey_of_sixteen_bits_is_white():
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 30000, 65535]], np.uint16)).save(file, "PNG", transparency=30000)
    assert np.asarray(read_image(file.getvalue())).tolist() == [[0, 255, 255]]


def test_half_transparent_places_are_half_white_and_a_processor_of_four_channels_gets_them():
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert abs(int(np.asarray(read_image(image, 3))[0, 0, 0]) - 127) <= 1
    assert np.asarray(read_image(image)).tolist() == np.asarray(image).tolist()


def test_integers_whose_range_is_in_doubt_are_no_sound():
    tone = np.round(8000 * np.sin(np.arange(400) / 9)).astype(np.int16)
    expected = tone / 2.0**15
    np.testing.assert_allclose(read_audio(tone, 16000), expected, atol=1e-6)
    np.testing.assert_allclose(read_audio(tone.astype(np.int32) << 16, 16000), expected, atol=1e-6)
    assert not read_audio([0] * 10, 16000).any()
    for sound in (tone.tolist(), tone.astype(np.int64), tone.astype(np.int32)):
        with pytest.raises(
            ValueError, match=r"int(32|64) from -8000 to 7999, whose range is in doubt; .*int16"
        ):
            read_audio({"array": sound, "sampling_rate": 16000}, 16000)


def test_a_processor_has_one_range_for_all_rows_and_saves_it(tmp_path):
    twelve = np.round(RAMP * 4095).astype(np.uint16)
    processor = make_processor(scan=(0, 4095))
    # The second picture is dark, which does not change what its values mean.
    rows = [twelve, (twelve // 16).astype(np.uint16)]
    found = processor(scan=rows)["scan"]["pixel_values"]
    torch.testing.assert_close(found[:, 0], torch.tensor(np.stack(rows) / 4095).float(), atol=0.003, rtol=0)
    processor.save_pretrained(tmp_path)
    again = FusionProcessor.from_pretrained(tmp_path)
    assert again.value_ranges == {"scan": (0.0, 4095.0)}
    assert torch.equal(again(scan=rows)["scan"]["pixel_values"], found)
    with pytest.raises(ValueError, match="scan, row 1: the image has 16 bits"):
        make_processor()(scan=[np.full((8, 8), 9000, np.uint16), rows[1]])


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"table": (0, 1)}, "key 'table', which is no modality of pictures"),
        ({"scna": (0, 1)}, "key 'scna', which is no modality of pictures"),
        ({"scan": (1, 0)}, r"value_ranges\['scan'\] is \(1, 0\); give the values of black and white"),
        ({"scan": 4095}, r"value_ranges\['scan'\] is 4095"),
        ({"scan": (0, float("nan"))}, r"value_ranges\['scan'\] is \(0, nan\)"),
    ],
)
def test_a_range_that_is_none_is_named(ranges, message):
    with pytest.raises(ValueError, match=message):
        make_processor(**ranges)
