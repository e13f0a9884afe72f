"""Images: the header is judged before any pixel is decoded."""

from __future__ import annotations

import io
import threading
import warnings

from PIL import Image, ImageOps

from poiesis.files._plain import SKIP, bad

MAX_PIXELS = 64_000_000
"""Largest width x height of an image."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_opening = threading.Lock()


def image_header(data: bytes, name: object) -> Image.Image:
    """Open an image without decoding it; size, type and number of frames are checked."""
    try:
        # Pillow warns of large images; the check below is stricter, so the warning says nothing.
        # The lock is for catch_warnings, which is not safe among threads.
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Image.DecompressionBombError:
        raise bad(name, f"has more than {MAX_PIXELS:,} pixels", f"shrink it, or {SKIP}") from None
    except Exception:  # decoders of hostile bytes raise anything
        raise bad(name, f"is not a readable {', '.join(FORMATS)} image", SKIP) from None
    if width * height > MAX_PIXELS:
        what = f"has {width} x {height} pixels, more than {MAX_PIXELS:,}"
        raise bad(name, what, f"shrink it, or {SKIP}")
    if image.mode not in MODES:
        what = f"has the pixel type {image.mode!r}, not 8 bits per channel"
        raise bad(name, what, f"convert it to 8 bits, or {SKIP}")
    if frames > 1:
        raise bad(name, f"is an animation of {frames} frames", f"save single images, or {SKIP}")
    return image


def read_image(data: bytes, name: object) -> Image.Image:
    """Decode one still image of at most 64 million pixels, turned upright as its EXIF data says."""
    image = image_header(data, name)
    try:
        image.load()
        return ImageOps.exif_transpose(image) if "exif" in image.info else image
    except Exception:
        raise bad(name, "is a broken or truncated image", SKIP) from None
