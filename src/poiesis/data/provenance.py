"""Recipes inside files: how a generated file was made travels with it.

A PNG holds its recipe in an iTXt chunk named "poiesis"; beside any other file lies `<file>.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from poiesis.errors import DataError
from poiesis.files import read_bytes, read_image, read_json

__all__ = ["read_recipe", "sidecar", "write_png", "write_sidecar"]

_KEY = "poiesis"


def _dump(recipe: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(recipe, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent)


def write_png(image: Image.Image, path: str | Path, recipe: dict[str, Any] | None = None) -> None:
    """Write a PNG with its recipe inside; the same pixels and recipe give the same bytes."""
    info = PngInfo()
    if recipe is not None:
        info.add_itxt(_KEY, _dump(recipe))
    image.save(path, "PNG", pnginfo=info, compress_level=6)


def sidecar(path: str | Path) -> Path:
    """Return the place of the recipe of a file that can't hold one: ``<file>.json``."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def write_sidecar(path: str | Path, recipe: dict[str, Any]) -> None:
    """Write the recipe of `path` beside it."""
    sidecar(path).write_text(_dump(recipe, indent=1) + "\n", encoding="utf-8")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Return the recipe in or beside a file; raises DataError where there is none."""
    path = Path(path)
    data = read_bytes(path)
    if data.startswith(b"\x89PNG"):
        text = read_image(data, path).info.get(_KEY)
        if text is None:
            raise DataError(f"{path}: holds no recipe; only files that poiesis sample wrote do")
        try:
            recipe = json.loads(text)
        except (ValueError, RecursionError):
            recipe = None
    else:
        beside = sidecar(path)
        if not beside.exists():
            raise DataError(f"{path}: has no recipe; it would lie beside it as {beside.name}")
        recipe = read_json(beside)
    if not isinstance(recipe, dict):
        raise DataError(f"{path}: its recipe is damaged; take the file as poiesis sample wrote it")
    return recipe
