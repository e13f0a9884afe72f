"""Which models there are: name or alias → class, preset, family, accepted data. No torch.

A model is listed by one `Entry`. What it is good at, its cost and its paper stand in the docstring
of its class and are read from the source without importing it (`describe`).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
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
    """Kinds of data: image, vector, audio, text, video."""
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
            accepts=("image", "vector", "audio"),
            summary="variational autoencoder: smooth latent space, likelihood bound, fast",
        ),
        Entry(
            name="beta-vae",
            target="poiesis.models.autoencoders.vae:VAE",
            family="autoencoders",
            accepts=("image", "vector", "audio"),
            summary="VAE with the KL term weighted by 4: disentangled codes",
            options={"beta": 4.0},
        ),
        Entry(
            name="cvae",
            target="poiesis.models.autoencoders.vae:VAE",
            family="autoencoders",
            accepts=("image", "vector", "audio"),
            summary="VAE conditioned on the class",
            options={"conditional": True},
        ),
        Entry(
            name="iwae",
            target="poiesis.models.autoencoders.iwae:IWAE",
            family="autoencoders",
            accepts=("image", "vector", "audio"),
            summary="importance weighted autoencoder: a VAE with a tighter bound",
        ),
        Entry(
            name="vdvae",
            target="poiesis.models.autoencoders.vdvae:VDVAE",
            family="autoencoders",
            accepts=("image",),
            summary="very deep VAE: latent maps from coarse to fine, best bound of the VAEs",
        ),
        Entry(
            name="autoencoder",
            target="poiesis.models.autoencoders.autoencoder:Autoencoder",
            family="autoencoders",
            accepts=("image", "vector", "audio"),
            summary="autoencoder: codes of few numbers, sharp reconstructions",
        ),
        Entry(
            name="denoising-autoencoder",
            target="poiesis.models.autoencoders.denoising_autoencoder:DenoisingAutoencoder",
            family="autoencoders",
            accepts=("image", "vector", "audio"),
            summary="autoencoder that removes Gaussian, salt-and-pepper or masking noise",
        ),
        Entry(
            name="sparse-autoencoder",
            target="poiesis.models.autoencoders.sparse_autoencoder:SparseAutoencoder",
            family="autoencoders",
            accepts=("image", "vector", "audio"),
            summary="autoencoder with a wide code of few active units",
        ),
        Entry(
            name="contractive-autoencoder",
            target="poiesis.models.autoencoders.contractive_autoencoder:ContractiveAutoencoder",
            family="autoencoders",
            accepts=("image", "vector", "audio"),
            summary="autoencoder whose codes resist small disturbances",
        ),
        Entry(
            name="vq-vae",
            target="poiesis.models.autoencoders.vq_vae:VQVAE",
            family="autoencoders",
            accepts=("image",),
            summary="discrete codes and a transformer over them: sharp reconstructions, tokens",
        ),
        Entry(
            name="vae-gan",
            target="poiesis.models.autoencoders.vae_gan:VAEGAN",
            family="autoencoders",
            accepts=("image", "vector"),
            summary="VAE with a discriminator: sharper pictures, codes to edit",
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
            name="cgan",
            target="poiesis.models.gans.cgan:CGAN",
            family="gans",
            accepts=("image", "vector"),
            summary="dense GAN conditioned on the class",
        ),
        Entry(
            name="lsgan",
            target="poiesis.models.gans.lsgan:LSGAN",
            family="gans",
            accepts=("image",),
            summary="DCGAN with the least squares loss: gradients that do not vanish",
        ),
        Entry(
            name="wgan",
            target="poiesis.models.gans.wgan:WGAN",
            family="gans",
            accepts=("image", "vector"),
            summary="Wasserstein GAN, clipped weights: a loss that measures the distance to data",
        ),
        Entry(
            name="wgan-gp",
            target="poiesis.models.gans.wgan_gp:WGANGP",
            family="gans",
            accepts=("image", "vector"),
            summary="Wasserstein GAN with gradient penalty: steady training, all modes",
        ),
        Entry(
            name="sngan",
            target="poiesis.models.gans.sngan:SNGAN",
            family="gans",
            accepts=("image",),
            summary="residual GAN with spectral norm: steady training, varied images",
        ),
        Entry(
            name="sagan",
            target="poiesis.models.gans.sagan:SAGAN",
            family="gans",
            accepts=("image",),
            summary="residual GAN with self-attention: parts of an image that fit each other",
        ),
        Entry(
            name="biggan",
            target="poiesis.models.gans.biggan:BigGAN",
            family="gans",
            accepts=("image",),
            summary="wide residual GAN by class, with truncation",
        ),
        Entry(
            name="r3gan",
            target="poiesis.models.gans.r3gan:R3GAN",
            family="gans",
            accepts=("image", "vector"),
            summary="GAN of paired scores and two penalties: steady, covers the data, sharp",
        ),
        Entry(
            name="mocogan",
            target="poiesis.models.gans.mocogan:MoCoGAN",
            family="gans",
            accepts=("video",),
            summary="GAN of video: a latent for what is seen, another for how it moves",
        ),
        Entry(
            name="ddpm",
            target="poiesis.models.diffusion.ddpm:DDPM",
            family="diffusion",
            accepts=("image", "vector", "audio", "video"),
            summary="denoising diffusion with a U-Net: best images here, slower to sample",
        ),
        Entry(
            name="edm",
            target="poiesis.models.diffusion.edm:EDM",
            family="diffusion",
            accepts=("image", "vector", "audio", "video"),
            summary="diffusion, preconditioned at every level of noise: fewer steps, better images",
        ),
        Entry(
            name="flow-matching",
            target="poiesis.models.diffusion.flow_matching:FlowMatching",
            family="diffusion",
            accepts=("image", "vector", "audio", "video"),
            summary="straight flows from noise to data: simple, few steps",
        ),
        Entry(
            name="score-sde",
            target="poiesis.models.diffusion.score_sde:ScoreSDE",
            family="diffusion",
            accepts=("image", "vector", "audio", "video"),
            summary="score matching in continuous time: VP, sub-VP and VE noise",
        ),
        Entry(
            name="latent-diffusion",
            target="poiesis.models.diffusion.latent_diffusion:LatentDiffusion",
            family="diffusion",
            accepts=("image",),
            summary="a flow over an autoencoder's latents: fast at larger images",
        ),
        Entry(
            name="consistency",
            target="poiesis.models.diffusion.consistency:Consistency",
            family="diffusion",
            accepts=("image", "vector", "audio", "video"),
            summary="samples in one or two calls: distilled from a diffusion run, or by itself",
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
    node, tree = _class(path, attribute)
    presets: dict[str, str] = {}
    options: dict[str, tuple[str, str]] = {}
    sampling: dict[str, tuple[str, str]] = {}
    for base, module_tree in [*reversed(list(_bases(node, tree))), (node, tree)]:
        for item in base.body:
            if isinstance(item, ast.FunctionDef) and any(
                ast.unparse(d).split(".")[-1] == "preset" for d in item.decorator_list
            ):
                presets[item.name] = inspect.cleandoc(ast.get_docstring(item) or "")
            elif isinstance(item, ast.ClassDef) and item.name == "Config":
                options |= _options(item, module_tree, options)
            elif isinstance(item, ast.ClassDef) and item.name == "Sampling":
                sampling |= _options(item, module_tree, sampling)
    return Description(
        doc=inspect.cleandoc(ast.get_docstring(node) or ""),
        presets=presets,
        options=options,
        sampling=sampling,
        path=path,
    )


def _class(path: Path, name: str) -> tuple[ast.ClassDef, ast.Module]:
    """Return the source of a class and of its module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), tree


def _bases(node: ast.ClassDef, module: ast.Module) -> Iterator[tuple[ast.ClassDef, ast.Module]]:
    """Yield the sources of the project's classes that a class is built on, nearest first."""
    for base in node.bases:
        found = _imported(ast.unparse(base), module)
        if found is not None:
            yield found
            yield from _bases(*found)


def _imported(name: str, module: ast.Module) -> tuple[ast.ClassDef, ast.Module] | None:
    """Return the source of a class that a module imports from the project; None for all else."""
    for item in module.body:
        if not isinstance(item, ast.ImportFrom) or not (item.module or "").startswith("poiesis."):
            continue
        for alias in item.names:
            if (alias.asname or alias.name) == name:
                spec = importlib.util.find_spec(item.module or "")
                if spec is not None and spec.origin is not None:
                    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
                    for node in tree.body:
                        if isinstance(node, ast.ClassDef) and node.name == alias.name:
                            return node, tree
    return None


def _options(
    node: ast.ClassDef, module: ast.Module, inherited: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """Return field → (default, docstring) of a class, those of imported bases first.

    A field that only sets another default keeps the docstring that it has in `inherited`.
    """
    found: dict[str, tuple[str, str]] = {}
    for base in reversed(list(_bases(node, module))):
        found |= _options(*base, found)
    docs = class_field_docs(node)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            name, default = item.target.id, "" if item.value is None else ast.unparse(item.value)
            inner = _imported(ast.unparse(item.annotation), module)
            if inner is None:
                before = found.get(name) or inherited.get(name) or ("", "")
                found[name] = (default, docs.get(name, before[1]))
            else:  # a dataclass of further options
                further = _options(*inner, {})
                found |= {f"{name}.{key}": value for key, value in further.items()}
    return found
