"""Decoding of raw media for Hugging Face processors: to an 8-bit image, or to mono samples at a known rate.

Decoding needs Pillow and libsndfile (soundfile) only: no torchvision, torchaudio or torchcodec.

Files may come from untrusted sources. Files that are too large are refused by their header, before they are decoded:
images of more pixels than `PIL.Image.MAX_IMAGE_PIXELS` (89 million; set it, None for no limit), and sounds of more
samples than `MAX_SAMPLES`, before or after resampling.
"""

import io
import os
from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ecsfusion.data.arrays import array_of, to_float32
from ecsfusion.data.missing_files import no_file
from ecsfusion.extras import extra_for

MAX_SAMPLES = 1 << 28
"""Largest number of samples of one sound, all channels together: 93 minutes of one channel at 48 kHz. To change it, set
`ecsfusion.data.media.MAX_SAMPLES`."""
MAX_SAMPLING_RATE = 768_000
"""Largest sampling rate in Hz; the length of the filter for resampling grows with the rates."""
MAX_OVERSHOOT = 0.5
"""How far the floats of an image may lie beside their range, as a share of it; they are clipped."""
MAX_12_BITS = 4095
ORIENTATION = 0x0112
"""The tag of EXIF that says how the camera was turned."""
VALUE_RANGES = "say what black and white are: FusionProcessor(..., value_ranges={name: (0, 4095)})"
"""The remedy for an image whose range is in doubt."""
PLAIN_MODES = ("L", "RGB", "RGBA")
"""Modes of Pillow whose values are brightness; others are converted to them."""
GREY_MODES = ("1", "LA", "La")
TRANSPARENT_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
EXTERNAL_FORMATS = ("EPS",)
"""Formats that Pillow decodes by running another program."""

Encoded = str | os.PathLike | bytes | bytearray


def read_image(
    value: Any, num_channels: int | None = None, value_range: tuple[float, float] | None = None
) -> Image.Image:
    """Decode one raw image.

    What the values mean follows from their type, and never from those of one image: booleans are black and white, 8
    bits are 0..255, and so are integers of other types but 16 bits without a sign, which are 0..65535. Floats are 0..1,
    of which overshoot, such as that of bicubic resizing, is clipped. Where this is in doubt, the image is refused, and
    `value_range` decides.

    Args:
        value: a PIL image; an array or tensor (H, W), (H, W, C) or (C, H, W) with C in {1, 3, 4}; the path of an image
            file; its bytes; or a mapping with "bytes" and "path" as `datasets.Image(decode=False)` stores it.
        num_channels: 1 for grey, 3 for RGB, None to keep what the image has.
        value_range: the values of black and of white, for arrays and for images of more than 8 bits; None for that of
            the type.

    Returns:
        A PIL image of mode "L" or "RGB", or "RGBA" when `num_channels` is None; turned upright as its EXIF says. As "L"
        or "RGB" transparent places are white.

    Raises:
        ValueError: the file is absent, the bytes are no image, or the array has another shape or range.
        TypeError: `value` is none of the above.
    """
    if isinstance(value, Mapping):
        value = _bytes_or_path(value)
    if isinstance(value, Encoded):
        image = _decode_image(value)
    elif isinstance(value, Image.Image):
        image = _upright(value, "the PIL image")
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        image = _image_of_array(array_of(value, "the image array"), value_range)
    else:
        raise TypeError(
            f"an image cannot be a {type(value).__name__}; give a PIL image, an array, a path or bytes"
        )
    # PIL would clip more than 8 bits, not scale them.
    if image.mode.startswith("I;16"):
        values, transparent = np.asarray(image).astype(np.uint16), image.info.get("transparency")
        image = _image_of_array(values, value_range)
        if isinstance(transparent, int):
            image.paste(255, mask=Image.fromarray(values == transparent))
    if image.mode == "I" and value_range is None:
        raise ValueError(f"the image has mode 'I', whose range is not known; {VALUE_RANGES}")
    if image.mode in ("I", "F"):
        image = _image_of_array(np.asarray(image), value_range)
    if num_channels is None:
        # The values of other modes are places in a palette, inks or angles.
        wanted = image.mode if image.mode in PLAIN_MODES else "L" if image.mode in GREY_MODES else "RGB"
    else:
        wanted = "L" if num_channels == 1 else "RGB"
    return image.convert(wanted) if wanted == "RGBA" else _on_white(image).convert(wanted)


def _on_white(image: Image.Image) -> Image.Image:
    """Lay an image with transparent places on white; what a file holds under them is not to be seen.

    `convert` would show it: often black, or what was erased.
    """
    if image.mode not in TRANSPARENT_MODES and image.info.get("transparency") is None:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def read_video(
    value: Any,
    num_channels: int | None = None,
    num_frames: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> list[Image.Image]:
    """The frames of one video, in order. Video files are not decoded here; use PyAV or torchcodec.

    Args:
        value: a list of frames, each as `read_image` takes it, or an array or tensor (T, H, W, C) or (T, C, H, W).
        num_channels: as in `read_image`.
        num_frames: the number of frames to take, evenly spread from the first to the last; None for all.
        value_range: as in `read_image`.

    Returns:
        PIL images.

    Raises:
        ValueError: no frame, or one that cannot be read.
        TypeError: `value` is none of the above.
    """
    if not isinstance(value, (list, tuple, np.ndarray, torch.Tensor)):
        raise TypeError(
            f"a video cannot be a {type(value).__name__}; give a list of its frames, or an array of them"
        )
    if len(value) == 0:
        raise ValueError("the video has no frames; leave this row out")
    chosen = range(len(value)) if num_frames is None else np.linspace(0, len(value) - 1, num_frames).round()
    frames = []
    for index in map(int, chosen):
        try:
            frames.append(read_image(value[index], num_channels, value_range))
        except (TypeError, ValueError) as error:
            raise type(error)(f"frame {index}: {error}") from error
    return frames


def read_audio(value: Any, sampling_rate: int | None) -> np.ndarray:
    """Decode one raw sound, average its channels, and bring it to one sampling rate.

    Args:
        value: samples (T,) as array, tensor or list, taken to be at `sampling_rate` already; a mapping with
            "array" and "sampling_rate" (Hz); a mapping with "bytes" and "path" as
            `datasets.Audio(decode=False)` stores it; the path of a sound file; its bytes; or a decoder of
            `datasets.Audio`. Integers are scaled by the range of their type, floats are taken as they are. Of 64 bits,
            as lists of integers have them, and of 32 bits with values of 16, the range is in doubt: they are refused.
        sampling_rate: the rate to return, in Hz; None keeps the rate of the file.

    Returns:
        Samples (T,), float32, mono.

    Raises:
        ValueError: the file is absent or cannot be decoded, there is no sample, a sample is not finite, or
            the rate is missing or not a positive whole number.
        TypeError: `value` is none of the above.
    """
    # A decoder of torchcodec, which `datasets.Audio` returns where torchcodec is installed.
    if hasattr(value, "get_all_samples"):
        decoded = value.get_all_samples()
        samples, rate = decoded.data.mean(dim=0).numpy(), decoded.sample_rate
    elif isinstance(value, Mapping) and value.get("array") is not None:
        samples, rate = _samples(value["array"]), value.get("sampling_rate")
        if rate is None:
            raise ValueError('the sound has "array" but no "sampling_rate"; add it, in Hz')
    else:
        if isinstance(value, Mapping):
            value = _bytes_or_path(value)
        if isinstance(value, Encoded):
            samples, rate = _decode_audio(value)
        elif isinstance(value, tuple) and len(value) == 2 and any(np.ndim(part) for part in value):
            raise ValueError(
                'the sound is a pair, as of samples and their rate; give a mapping with "array" and "sampling_rate"'
            )
        elif isinstance(value, (np.ndarray, torch.Tensor, list, tuple)):
            samples, rate = _samples(value), sampling_rate
        else:
            raise TypeError(
                f"a sound cannot be a {type(value).__name__}; give samples, a path, bytes, or a mapping with "
                '"array" and "sampling_rate"'
            )
    if samples.size == 0:
        raise ValueError("the sound has no samples; leave this row out")
    if not np.isfinite(samples).all():
        raise ValueError("the sound has samples that are NaN or infinite; repair it or leave this row out")
    if sampling_rate is None or rate == sampling_rate:
        return samples
    return _resample(samples, rate, sampling_rate)


def seconds_of(value: Any, sampling_rate: int | None) -> float:
    """The length of one raw sound in seconds, of a file by its header.

    Args:
        value: as `read_audio` takes it.
        sampling_rate: of samples that come without one, in Hz; None to count them.

    Raises:
        ValueError: the file is absent or is no sound, or a length that is not known before decoding.
    """
    metadata = getattr(value, "metadata", None)
    if metadata is not None:
        # A decoder of torchcodec.
        seconds = getattr(metadata, "duration_seconds", None) or getattr(
            metadata, "duration_seconds_from_header", None
        )
        if seconds is None:
            raise ValueError("its decoder does not tell the length of the sound")
        return float(seconds)
    if isinstance(value, Mapping) and value.get("array") is not None:
        return len(value["array"]) / float(value.get("sampling_rate") or sampling_rate or 1)
    if isinstance(value, Mapping):
        value = _bytes_or_path(value)
    if not isinstance(value, Encoded):
        return len(value) / float(sampling_rate or 1)
    file, soundfile = _open(value), _soundfile()
    try:
        header = soundfile.info(file)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise ValueError(f"{_describe(value)} cannot be decoded as sound ({error})") from error
    return header.frames / header.samplerate


def _bytes_or_path(value: Mapping[str, Any]) -> bytes | str:
    if value.get("bytes") is not None:
        return value["bytes"]
    if value.get("path") is not None:
        return value["path"]
    raise ValueError(
        f'a mapping with the keys {sorted(value)} holds no media; fill "bytes" or "path", or of a sound "array"'
    )


def _open(source: Encoded) -> io.BytesIO | Path:
    if isinstance(source, (bytes, bytearray)):
        return io.BytesIO(source)
    try:
        is_file = Path(source).is_file()
    except (OSError, ValueError):
        # Such as a name that is too long or contains a null byte.
        is_file = False
    if not is_file:
        raise ValueError(no_file(os.fsdecode(source)))
    return Path(source)


def _describe(source: Encoded) -> str:
    return f"{len(source)} bytes" if isinstance(source, (bytes, bytearray)) else repr(os.fspath(source))


def _decode_image(source: Encoded) -> Image.Image:
    file = _open(source)
    try:
        image = Image.open(file)
        if image.format in EXTERNAL_FORMATS:
            raise ValueError(f"{image.format} is a program, which is not run")
        # Up to twice as many Pillow only warns. A filter that makes an error of it would be that of all threads.
        most = Image.MAX_IMAGE_PIXELS
        if most is not None and image.width * image.height > most:
            raise ValueError(
                f"{image.width} x {image.height} pixels are more than {most}: a decompression bomb?"
            )
    except Exception as error:
        raise _unreadable(_describe(source), error) from error
    return _upright(image, _describe(source))


def _upright(image: Image.Image, what: str) -> Image.Image:
    """An image whose values are read, turned as its EXIF says; `what` it is, for the error message."""
    try:
        image.load()
        is_turned = image.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if is_turned else image
    except Exception as error:
        raise _unreadable(what, error) from error


def _unreadable(what: str, error: Exception) -> ValueError:
    # Pillow's plugins raise errors of any type for damaged files.
    return ValueError(
        f"{what} cannot be read as an image ({error}); give PNG, JPEG or another format of Pillow, or leave this row"
        " out"
    )


def _image_of_array(array: np.ndarray, value_range: tuple[float, float] | None) -> Image.Image:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the image array holds {array.dtype}; give integers in 0..255 or floats in 0..1")
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        raise ValueError(
            f"the image array has shape {array.shape}; give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 "
            "channels"
        )
    black, white = _range_of(array) if value_range is None else value_range
    if (black, white) != (0, 255) or array.dtype != np.uint8:
        low, high = array.min(), array.max()
        # Integers are exact; what lies beside their range is no overshoot.
        beyond = 0.0 if array.dtype.kind in "biu" else MAX_OVERSHOOT * (white - black)
        # The comparison is false for NaN too.
        if not (black - beyond <= low and high <= white + beyond):
            raise ValueError(
                f"the image array of {array.dtype} has values from {low} to {high}, outside of "
                f"{black:g}..{white:g}; give integers in 0..255 or floats in 0..1, or {VALUE_RANGES}"
            )
        scaled = (array.astype(np.float64) - black) / (white - black)
        array = np.round(scaled.clip(0.0, 1.0) * 255.0)
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


def _range_of(array: np.ndarray) -> tuple[float, float]:
    """The values of black and white in an array of this type."""
    if array.dtype.kind in "bf":
        return 0, 1
    if array.dtype != np.uint16:
        return 0, 255
    # A picture all black is black in any range.
    if 0 < array.max() < MAX_12_BITS + 1:
        raise ValueError(
            f"the image has 16 bits but no value above {array.max()}, so it may be one of 8, 10 or 12 bits; "
            f"{VALUE_RANGES}"
        )
    return 0, 65535


def _decode_audio(source: Encoded) -> tuple[np.ndarray, int]:
    file, soundfile = _open(source), _soundfile()
    try:
        with soundfile.SoundFile(file) as sound:
            rate, num_samples = sound.samplerate, sound.frames * sound.channels
            if num_samples > MAX_SAMPLES:
                raise ValueError(
                    f"its header claims {num_samples:,} samples, more than the {MAX_SAMPLES:,} of "
                    "ecsfusion.data.media.MAX_SAMPLES"
                )
            samples = sound.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise ValueError(
            f"{_describe(source)} cannot be decoded as sound ({error}); give WAV, FLAC, Ogg, Opus or MP3, or "
            "leave this row out"
        ) from error
    return samples.mean(axis=1), rate


def _soundfile() -> Any:
    """The library that decodes sounds, which images and arrays of samples do without."""
    with extra_for("a sound file"):
        import soundfile
    return soundfile


def _samples(value: Any) -> np.ndarray:
    array = array_of(value, "the sound")
    if array.ndim != 1:
        raise ValueError(
            f"the sound has shape {array.shape}; give mono samples (T,), such as the mean of its channels"
        )
    if np.issubdtype(array.dtype, np.signedinteger):
        # Silence is silence in any range.
        if (
            array.itemsize > 2
            and array.any()
            and (array.itemsize > 4 or max(-int(array.min()), int(array.max())) < 1 << 15)
        ):
            raise ValueError(
                f"the sound has samples of type {array.dtype} from {array.min()} to {array.max()}, whose range is in "
                "doubt; give those of 16 bits as int16, or floats in -1..1"
            )
        return (array / (float(np.iinfo(array.dtype).max) + 1)).astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"the sound has samples of type {array.dtype}; give floats or signed integers")
    return to_float32(array)


def _resample(samples: np.ndarray, rate: Any, new_rate: int) -> np.ndarray:
    is_number = isinstance(rate, (int, float, np.number)) and not isinstance(rate, bool)
    if not is_number or not 0 < rate <= MAX_SAMPLING_RATE or int(rate) != rate:
        raise ValueError(
            f"the sampling rate is {rate!r}; give a positive whole number of Hz, at most {MAX_SAMPLING_RATE}"
        )
    if len(samples) * new_rate > MAX_SAMPLES * rate:
        raise ValueError(
            f"at {new_rate} Hz instead of {rate} the sound has more than the {MAX_SAMPLES:,} samples of "
            "ecsfusion.data.media.MAX_SAMPLES"
        )
    # It takes longer to import than the rest of this package, and most runs resample nothing.
    from scipy.signal import resample_poly

    common = gcd(int(rate), new_rate)
    return resample_poly(samples, new_rate // common, int(rate) // common).astype(np.float32)
