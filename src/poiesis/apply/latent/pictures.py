"""Rows of pictures as a sheet (PNG), an animation (GIF, MP4) or a page with a slider (HTML).

In the moving ones each column is a moment: all rows are seen at once, and time runs over columns.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from poiesis import __version__
from poiesis.data.codecs.image import convert
from poiesis.errors import ConfigError, RunError
from poiesis.files import make_gif, make_mp4
from poiesis.models.trained import Trained
from poiesis.runs import write_atomic

__all__ = [
    "SUFFIXES",
    "Pictures",
    "check_path",
    "data_uri",
    "page",
    "picture",
    "pictures",
    "store",
    "write",
]

SUFFIXES = (".png", ".gif", ".mp4", ".html")

_GAP, _TEXT = 4, 12
_TILE, _STAGE = 56, 224
"""Least side of a picture in a sheet, and of one that has the stage to itself, in pixels."""


@dataclass(frozen=True)
class Pictures:
    """Pictures by row and column, with what each is called.

    native: levels (rows, columns, *spec.shape), the same as tensors. columns: names of the
    columns; rows: of the rows, empty strings where there is nothing to say. along: what the
    columns count.
    """

    title: str
    native: Tensor
    tiles: list[list[Image.Image]]
    rows: list[str]
    columns: list[str]
    along: str = ""


def picture(trained: Trained, row: Tensor) -> Image.Image:
    """Return a native sample (*spec.shape) as a picture: itself if it is one, else its preview."""
    raw = trained.codec.decode(row)
    return raw if isinstance(raw, Image.Image) else trained.codec.preview([raw], 1)


def pictures(
    trained: Trained,
    title: str,
    native: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    along: str = "",
) -> Pictures:
    """Return native samples (rows, columns, *spec.shape) as pictures."""
    tiles = [[picture(trained, sample) for sample in row] for row in native]
    return Pictures(title, native, tiles, list(rows), list(columns), along)


def check_path(path: Path, allowed: Sequence[str] = SUFFIXES) -> None:
    """Raise ConfigError if no such file can be written here."""
    if path.suffix not in allowed:
        known = ", ".join(allowed)
        raise ConfigError(f"{str(path)!r} ends in none of {known}; name such a file")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise ConfigError("writing .mp4 needs ffmpeg on the PATH; install it, or write .gif")


def write(shown: Pictures, path: Path, *, fps: float = 12) -> Path:
    """Write pictures in the format that the path's ending names; fps for the moving ones.

    Raises ConfigError for another ending or where ffmpeg is missing, RunError where it fails.
    """
    check_path(path)
    if path.suffix == ".png":
        data = _png(sheet(shown))
    elif path.suffix == ".gif":
        data = make_gif(frames(shown), fps)
    elif path.suffix == ".mp4":
        data = _mp4(frames(shown), fps)
    else:
        data = _slider(shown, fps).encode()
    return store(path, data)


def store(path: Path, data: bytes | str) -> Path:
    """Write a file whole or not at all, in a folder that may be new; raises RunError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"can't write {str(path)!r}: {error.strerror}") from None
    write_atomic(path, data)
    return path


# -- laying out ------------------------------------------------------------------------------------


@functools.cache
def _font(size: int = _TEXT) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib; Pillow's own font knows Latin only."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _width(text: str) -> int:
    return math.ceil(_font().getlength(text))


def _cut(text: str, width: int) -> str:
    """Return the text, shortened until it is no wider than so many pixels."""
    if _width(text) <= width:
        return text
    while text and _width(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""


def _enlarged(shown: Pictures, least: int) -> tuple[str, tuple[int, int], list[list[Image.Image]]]:
    """Return mode, size and tiles, enlarged by a whole factor to `least` pixels or a little less.

    Gray stays gray: 256 levels fit a GIF's palette exactly.
    """
    tiles = shown.tiles
    gray = all(tile.mode == "L" for row in tiles for tile in row)
    width, height = tiles[0][0].size
    factor = max(1, least // max(width, height))
    size = (width * factor, height * factor)
    made = [
        [convert(t, 1 if gray else 3).resize(size, Image.Resampling.NEAREST) for t in row]
        for row in tiles
    ]
    return "L" if gray else "RGB", size, made


def sheet(shown: Pictures) -> Image.Image:
    """Return all rows and columns, with their names beside them."""
    mode, (w, h), tiles = _enlarged(shown, _TILE)
    left = max((_width(name) for name in shown.rows), default=0)
    left = left + 3 * _GAP if left else _GAP
    top = _TEXT + 2 * _GAP if any(shown.columns) else _GAP
    cell_w, cell_h = w + _GAP, h + _GAP
    size = (left + cell_w * len(shown.columns), top + cell_h * len(tiles))
    canvas = Image.new(mode, size, "white")
    draw = ImageDraw.Draw(canvas)
    for number, name in enumerate(shown.columns):
        place = (left + number * cell_w + w / 2, top - _GAP)
        draw.text(place, _cut(name, w), "black", _font(), anchor="ms")
    for number, (name, row) in enumerate(zip(shown.rows, tiles, strict=True)):
        y = top + number * cell_h
        draw.text((left - 2 * _GAP, y + h / 2), name, "black", _font(), anchor="rm")
        for column, tile in enumerate(row):
            canvas.paste(tile, (left + column * cell_w, y))
    return canvas


def frames(shown: Pictures) -> list[Image.Image]:
    """Return a picture for each column, of all rows side by side with their names below."""
    count = len(shown.tiles)
    width, height = shown.tiles[0][0].size
    across = math.ceil(math.sqrt(count * height / width))
    mode, (w, h), tiles = _enlarged(shown, _STAGE if across < 3 else 2 * _STAGE // across)
    down = math.ceil(count / across)
    below = _TEXT + _GAP if any(shown.rows) else 0
    cell_w, cell_h = w + _GAP, h + below + _GAP
    made = []
    for column in range(len(shown.columns)):
        canvas = Image.new(mode, (cell_w * across + _GAP, cell_h * down + _GAP), "white")
        draw = ImageDraw.Draw(canvas)
        for number, name in enumerate(shown.rows):
            x, y = _GAP + number % across * cell_w, _GAP + number // across * cell_h
            canvas.paste(tiles[number][column], (x, y))
            place = (x + w / 2, y + h + _TEXT)
            draw.text(place, _cut(name, w), "black", _font(), anchor="ms")
        made.append(canvas)
    return made


# -- formats ---------------------------------------------------------------------------------------


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    """Return a picture as the text that stands for a file in a page."""
    return "data:image/png;base64," + base64.b64encode(_png(image)).decode()


def _mp4(images: list[Image.Image], fps: float) -> bytes:
    """Return a film of sheets, of even sides, so that it plays everywhere."""
    width, height = images[0].size
    even = []
    for image in images:
        canvas = Image.new("RGB", (width + width % 2, height + height % 2), "white")
        canvas.paste(image)
        even.append(canvas)
    return make_mp4(even, fps)


def _slider(shown: Pictures, fps: float) -> str:
    images = frames(shown)
    return page(
        "slider.html",
        title=shown.title,
        width=images[0].width,
        height=images[0].height,
        start=_middle(shown.columns),
        data={
            "frames": [data_uri(image) for image in images],
            "names": [f"{shown.along} {name}".strip() for name in shown.columns],
            "delay": 1000 / fps,
        },
    )


def _middle(columns: list[str]) -> int:
    """Return where a slider begins: where nothing is changed, if the columns say so."""
    return columns.index("0") if "0" in columns else 0


def page(template: str, *, data: dict[str, Any], **values: Any) -> str:
    """Return a page that holds all it needs; its script finds `data` as JSON."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # No "<" of a name may end the script element that the data stand in.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template(template).render(data=text, version=__version__, **values)
