"""Feature extractors by name: inception, small classifiers of known sets, random features.

The name says what a number was measured in, the hash proves it; no extractor stands in for another.
"""

from __future__ import annotations

from pathlib import Path

from poiesis.errors import ConfigError, suggest
from poiesis.metrics.extractors.base import Extractor
from poiesis.metrics.extractors.classifier import ClassifierExtractor
from poiesis.metrics.extractors.inception import LAYERS, InceptionExtractor
from poiesis.metrics.extractors.random_features import RandomExtractor

__all__ = ["CLASSIFIERS", "Extractor", "get_extractor", "names"]

CLASSIFIERS = ("digits", "mnist", "fashion-mnist", "cifar10-jpeg")
"""Data sets with a classifier of their own, whose weights come with the package."""
_WEIGHTS = Path(__file__).parents[1] / "weights"


def names() -> tuple[str, ...]:
    """Return the names `get_extractor` knows; "inception:64" and so on are further layers."""
    return ("inception", *CLASSIFIERS, "random")


def get_extractor(name: str | Path, *, levels: int = 256) -> Extractor:
    """Return the extractor of a name, or of a weights file.

    name: one of `names()`, "inception:LAYER", a .safetensors file of a classifier or the .pth file
    of the FID network. levels: number of levels of the images, for inception and random; a
    classifier knows its own. Raises ConfigError for an unknown name, DataError where weights are
    missing or damaged.
    """
    text = str(name)
    if text in CLASSIFIERS:
        return ClassifierExtractor(_WEIGHTS / f"{text}.safetensors")
    if text == "random":
        return RandomExtractor(levels)
    base, _, layer = text.partition(":")
    if base == "inception" and (not layer or layer.isdigit()):
        return InceptionExtractor.load(layer=int(layer or LAYERS[-1]), levels=levels)
    if text.endswith(".safetensors"):
        return ClassifierExtractor(Path(text).expanduser())
    if text.endswith((".pth", ".pt")):
        return InceptionExtractor.load(text, levels=levels)
    hint = suggest(text, names()) or f"; known: {', '.join(names())}"
    raise ConfigError(f"no extractor {text!r}{hint}, or give a .safetensors or .pth file")
