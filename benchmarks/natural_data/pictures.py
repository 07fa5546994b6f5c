"""A drawing of any size becomes a small square picture on white; pictures that look alike are found."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE, MARGIN = 128, 4
# A grey value below this is drawn, not background.
INK = 250


def on_white(picture: Image.Image) -> Image.Image:
    """The picture as RGB, what is transparent in white."""
    picture = picture.convert("RGBA")
    background = Image.new("RGBA", picture.size, "white")
    background.alpha_composite(picture)
    return background.convert("RGB")


def framed(picture: Image.Image, min_pixels: int) -> Image.Image | None:
    """What is drawn, cropped and scaled to fit into 128 x 128 pixels with a margin of 4.

    Args:
        picture: RGB on white.
        min_pixels: of ink.

    Returns:
        RGB (128, 128); None where less is drawn.
    """
    ink = np.argwhere(np.asarray(picture.convert("L")) < INK)
    if len(ink) < min_pixels:
        return None
    (top, left), (bottom, right) = ink.min(0), ink.max(0) + 1
    picture = picture.crop((left, top, right, bottom))
    scale = (SIZE - 2 * MARGIN) / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    return canvas


def jpeg(picture: Image.Image) -> bytes:
    """Quality 92, colours at the full resolution."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92, subsampling=0, optimize=True)
    return buffer.getvalue()


def grey_patterns(pictures: list[Image.Image], side: int) -> NDArray[np.float32]:
    """Grey values at side x side pixels, centered, of norm 1: their inner products are correlations.

    Returns:
        (N, side * side); zeros for a picture of one grey.
    """
    small = [picture.convert("L").resize((side, side), Image.Resampling.BOX) for picture in pictures]
    values = np.stack([np.asarray(each, np.float32).ravel() for each in small])
    values -= values.mean(1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def colour_patterns(pictures: list[Image.Image], side: int) -> NDArray[np.float32]:
    """Colours at side x side pixels, (N, side * side * 3)."""
    small = [picture.resize((side, side), Image.Resampling.BOX) for picture in pictures]
    return np.stack([np.asarray(each, np.float32).ravel() for each in small])
