"""A latent space as a map: codes in two dimensions, on a page that shows each sample under the
pointer.

Shape letters: n samples, z values of a code.
"""

from __future__ import annotations

import colorsys
import dataclasses
import importlib.util
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poiesis.apply.latent.pictures import check_path, data_uri, page, picture, store
from poiesis.apply.latent.space import Codes, LatentSpace
from poiesis.data.codecs.image import convert
from poiesis.errors import DataError, MissingDependency
from poiesis.sampling.latent import principal_axes

__all__ = ["METHODS", "Map", "latent_map", "project"]

Method = Literal["pca", "tsne", "umap"]
METHODS: dict[str, str] = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}

_THUMB = 64
"""Longest side of a thumbnail in pixels."""
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Map:
    """Places of codes in two dimensions.

    xy: float64 (n, 2). axes: what each axis is called. trustworthiness in [0, 1]: whether those
    that are neighbours on the map are so in the latent space too (Venna & Kaski 2001); 1 is all,
    about 0.5 is chance; None for too few samples.
    """

    method: Method
    codes: Codes
    xy: Tensor
    axes: tuple[str, str]
    trustworthiness: float | None
    path: Path | None


def latent_map(
    space: LatentSpace, *, method: Method = "pca", out: str | Path | None = None, seed: int = 0
) -> Map:
    """Map the codes of the data to two dimensions; write the map as a page.

    method: pca, the two directions of most variance; tsne (scikit-learn) and umap (needs the
    package umap-learn) keep near what is near, and distances between groups mean little. out: an
    .html file that needs nothing else. seed: of tsne and umap. Raises MissingDependency.
    """
    if out is not None:
        check_path(Path(out), (".html",))
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise MissingDependency("umap-learn", "umap", "a map by UMAP")
    codes = space.codes
    xy, axes = project(codes.z, method, seed=seed)
    found = Map(method, codes, xy, axes, _trustworthiness(codes.z, xy), None)
    if out is None:
        return found
    return dataclasses.replace(found, path=store(Path(out), _page(space, found)))


def project(z: Tensor, method: Method, *, seed: int = 0) -> tuple[Tensor, tuple[str, str]]:
    """Return codes (n, z) in two dimensions, float64 (n, 2), and what the axes are called.

    Raises DataError for fewer than four codes.
    """
    if len(z) < 4:
        raise DataError(f"a map needs at least 4 samples, not {len(z)}")
    x = z.double()
    if method == "pca":
        axes, _, shares = principal_axes(x, 2)
        xy = torch.zeros(len(x), 2, dtype=torch.float64)
        xy[:, : len(axes)] = (x - x.mean(0)) @ axes.T
        names = [f"PC {n + 1}: {share:.1%} of the variance" for n, share in enumerate(shares)]
        return xy, (names[0], names[1] if len(names) > 1 else "")
    if method == "tsne":
        from sklearn.manifold import TSNE

        # As many neighbours as advised (van der Maaten & Hinton 2008), where there are so many.
        perplexity = min(30.0, (len(x) - 1) / 3)
        start = "pca" if x.shape[1] > 1 else "random"
        tsne = TSNE(perplexity=perplexity, init=start, random_state=seed)
        placed = tsne.fit_transform(x.numpy())
    else:
        import umap  # pyright: ignore[reportMissingImports]

        with warnings.catch_warnings():
            # It tells that a seed makes it use one thread.
            warnings.simplefilter("ignore")
            reducer = umap.UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed)
            placed = reducer.fit_transform(x.numpy())
    return torch.from_numpy(np.asarray(placed, np.float64)), ("", "")


def _trustworthiness(z: Tensor, xy: Tensor) -> float | None:
    from sklearn.manifold import trustworthiness

    # It is defined for fewer neighbours than half of the samples.
    k = min(_NEIGHBOURS, (len(z) - 1) // 2)
    if k < 1 or not bool(torch.isfinite(xy).all()):
        return None
    return float(trustworthiness(z.double().numpy(), xy.numpy(), n_neighbors=k))


# -- the page --------------------------------------------------------------------------------------


def _page(space: LatentSpace, found: Map) -> str:
    codes, trained = found.codes, space.trained
    labels = codes.labels
    classes = sorted(set(labels)) if labels is not None else []
    xy = found.xy - (found.xy.amin(0) + found.xy.amax(0)) / 2
    spread = xy.abs().amax(0).clamp(min=1e-12)
    if found.method == "pca":  # one scale for both: distances are to be compared
        spread = spread.amax().expand(2)
    places = (xy / spread).tolist()
    thumbs, size, across = _thumbs(space, codes)
    return page(
        "map.html",
        title=f"{METHODS[found.method]} of {trained.name} codes: {trained.data_name}",
        count=f"{len(codes.z):,}",
        where=codes.inputs.where,
        dims=codes.z.shape[1],
        trust="" if found.trustworthiness is None else f"{found.trustworthiness:.3f}",
        data={
            "points": [[round(x, 4), round(y, 4)] for x, y in places],
            "names": codes.inputs.names,
            "labels": [classes.index(label) for label in labels] if labels is not None else None,
            "classes": [space.class_name(number) for number in classes],
            "colours": _colours(len(classes)),
            "axes": found.axes,
            "thumbs": data_uri(thumbs),
            "size": size,
            "across": across,
            "pixelated": max(size) < _THUMB,
        },
    )


def _thumbs(space: LatentSpace, codes: Codes) -> tuple[Image.Image, tuple[int, int], int]:
    """Return all samples in one picture, the size of each in it, and how many lie in a row."""
    across = math.ceil(math.sqrt(len(codes.z)))
    canvas, size, mode = Image.new("L", (1, 1)), (1, 1), "L"
    for number in range(len(codes.z)):
        tile = picture(space.trained, codes.inputs.fetch(number, number + 1)[0])
        if number == 0:
            share = min(1.0, _THUMB / max(tile.size))
            size = (max(1, round(tile.width * share)), max(1, round(tile.height * share)))
            mode = "L" if tile.mode == "L" else "RGB"
            down = math.ceil(len(codes.z) / across)
            canvas = Image.new(mode, (across * size[0], down * size[1]))
        tile = convert(tile, 1 if mode == "L" else 3)
        if tile.size != size:
            tile = tile.resize(size, Image.Resampling.BOX)
        row, column = divmod(number, across)
        canvas.paste(tile, (column * size[0], row * size[1]))
    return canvas, size, across


def _colours(count: int) -> list[str]:
    """Return a colour for each class: those of Tableau for up to ten, else hues all round."""
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    if count <= 10:
        return [to_hex(mpl.colormaps["tab10"](number)) for number in range(max(count, 1))]
    hues = [number / count for number in range(count)]
    return [to_hex(colorsys.hls_to_rgb(hue, (0.4, 0.6)[n % 2], 0.6)) for n, hue in enumerate(hues)]
