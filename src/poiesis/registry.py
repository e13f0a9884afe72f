"""Which models there are: name or alias → class, preset, family, accepted data. No torch.

A model is listed by one `Entry`. What it is good at, its cost and its paper stand in the docstring
of its class and are read from the source without importing it (`describe`).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poiesis.config import class_field_docs
from poiesis.errors import ConfigError, suggest

if TYPE_CHECKING:
    from poiesis.models.base import GenerativeModel

__all__ = [
    "MODELS",
    "Description",
    "Entry",
    "describe",
    "entry",
    "list_models",
    "model_class",
    "names",
]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One listed model. An alias is an entry with a preset or options of an existing class."""

    name: str
    target: str
    """``package.module:Class``."""
    family: str
    accepts: tuple[str, ...]
    """Kinds of data: image, vector, text."""
    summary: str
    preset: str = "default"
    options: dict[str, Any] = field(default_factory=dict)
    """Config values that the alias sets on top of the preset, by dotted key."""


MODELS: dict[str, Entry] = {
    e.name: e
    for e in (
        Entry(
            name="vae",
            target="poiesis.models.autoencoders.vae:VAE",
            family="autoencoders",
            accepts=("image", "vector"),
            summary="variational autoencoder: smooth latent space, likelihood bound, fast",
        ),
        Entry(
            name="gan",
            target="poiesis.models.gans.gan:GAN",
            family="gans",
            accepts=("image", "vector"),
            summary="the first GAN, dense networks: the one to learn from",
        ),
        Entry(
            name="dcgan",
            target="poiesis.models.gans.dcgan:DCGAN",
            family="gans",
            accepts=("image",),
            summary="convolutional GAN: sharp images in one pass",
        ),
        Entry(
            name="ddpm",
            target="poiesis.models.diffusion.ddpm:DDPM",
            family="diffusion",
            accepts=("image",),
            summary="denoising diffusion with a U-Net: best images here, slower to sample",
        ),
        Entry(
            name="transformer",
            target="poiesis.models.autoregressive.transformer:Transformer",
            family="autoregressive",
            accepts=("text", "image"),
            summary="decoder-only transformer over text tokens or pixels: exact likelihood",
        ),
    )
}


def names() -> list[str]:
    """Return the listed model names."""
    return list(MODELS)


def list_models() -> list[dict[str, Any]]:
    """Return name, family, accepted data and summary of every listed model."""
    keys = ("name", "family", "accepts", "summary")
    return [{key: getattr(e, key) for key in keys} for e in MODELS.values()]


def entry(name: str) -> Entry:
    """Return the entry of a model name; raises ConfigError with a suggestion."""
    try:
        return MODELS[name]
    except KeyError:
        hint = suggest(name, MODELS) or f"; known: {', '.join(MODELS)}"
        raise ConfigError(f"no model named {name!r}{hint}") from None


def model_class(name: str) -> type[GenerativeModel]:
    """Import and return the class behind a model name."""
    module, _, attribute = entry(name).target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model's source says of itself, read without importing it."""

    doc: str
    presets: dict[str, str]
    """Preset name → its docstring."""
    options: dict[str, tuple[str, str]]
    """Config field → (default as written, docstring)."""
    sampling: dict[str, tuple[str, str]]
    """Sampling option → (default as written, docstring)."""
    path: Path


def describe(name: str) -> Description:
    """Read class docstring, presets and options of a model from its source file."""
    module, _, attribute = entry(name).target.partition(":")
    # find_spec imports parent packages, so the model packages' __init__ files stay free of torch.
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ConfigError(f"the module {module!r} of model {name!r} can't be found")
    path = Path(found.origin)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == attribute)
    presets = {
        item.name: inspect.cleandoc(ast.get_docstring(item) or "")
        for item in node.body
        if isinstance(item, ast.FunctionDef)
        and any(ast.unparse(d).split(".")[-1] == "preset" for d in item.decorator_list)
    }
    inner = {n.name: n for n in node.body if isinstance(n, ast.ClassDef)}

    def options(cls: str) -> dict[str, tuple[str, str]]:
        return _options(inner[cls], tree) if cls in inner else {}

    return Description(
        doc=inspect.cleandoc(ast.get_docstring(node) or ""),
        presets=presets,
        options=options("Config"),
        sampling=options("Sampling"),
        path=path,
    )


def _options(node: ast.ClassDef, module: ast.Module) -> dict[str, tuple[str, str]]:
    """Return field → (default, docstring) of a class, those of an imported base first."""
    found: dict[str, tuple[str, str]] = {}
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    for item in module.body:
        if isinstance(item, ast.ImportFrom) and item.module:
            for alias in item.names:
                if (alias.asname or alias.name) in bases:
                    spec = importlib.util.find_spec(item.module)
                    if spec is None or spec.origin is None:
                        continue
                    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
                    for other in tree.body:
                        if isinstance(other, ast.ClassDef) and other.name == alias.name:
                            found.update(_options(other, tree))
    docs = class_field_docs(node)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            default = ast.unparse(item.value) if item.value is not None else ""
            found[item.target.id] = (default, docs.get(item.target.id, ""))
    return found
