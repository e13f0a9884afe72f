"""A latent space opened for use: data to flat codes and back, whatever form the latent has.

A model that decodes but does not encode, as a GAN, is explored by its own samples, whose codes are
the noise they are made of. Shape letters: n samples, z values of a code. The parts of a structured
latent (the vectors on a VQ-VAE's grid, the maps of a hierarchy) lie side by side in a code.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poiesis import registry
from poiesis.apply.inputs import Inputs, Progress, in_batches, latent_parts, open_inputs
from poiesis.config import check
from poiesis.errors import CapabilityError, DataError
from poiesis.models.autoencoders.vae import kl_normal
from poiesis.models.capabilities import of, require
from poiesis.models.trained import Trained, load
from poiesis.rng import Noise, generator
from poiesis.spec import Attributes, Classes

__all__ = ["Codes", "LatentSpace", "Point", "latent"]


@dataclass(frozen=True)
class Codes:
    """Codes of data. z: float32 (n, z), posterior means where there is a posterior.

    variance: of the posterior (n, z), None for a model without. labels: class numbers, if known.
    """

    inputs: Inputs
    z: Tensor
    variance: Tensor | None

    @property
    def labels(self) -> list[int] | None:
        """Class numbers of the rows."""
        return self.inputs.labels

    @property
    def kl(self) -> Tensor | None:
        """Mean KL(q(z|x) || N(0, 1)) of each dimension in nats, (z,); None without posterior."""
        if self.variance is None:
            return None
        return kl_normal(self.z, self.variance.log()).mean(0)

    @property
    def spread(self) -> Tensor:
        """Standard deviation (z,) of the latent over data and posterior together."""
        if len(self.z) < 2:
            raise DataError(f"{self.inputs.where}: one sample has no spread; give more")
        inner = 0.0 if self.variance is None else self.variance.mean(0)
        return (self.z.var(0) + inner).sqrt()


@dataclass(frozen=True)
class Point:
    """A place to start from: a sample's code, or the mean code of a class."""

    name: str
    z: Tensor
    """The code (z,)."""
    label: int | None
    """Class number, if known."""
    row: Tensor | None = None
    """The native sample; None for a mean or what was computed."""


class LatentSpace:
    """The latent space of a run, and the data that it is explored with; made by `latent`.

    has_posterior: whether codes are means of posteriors under a standard normal prior. own: whether
    the data are the model's own samples. normal: whether codes are of a standard normal prior.
    """

    def __init__(
        self,
        trained: Trained,
        inputs: Inputs,
        *,
        limit: int = 2000,
        label: str | None = None,
        batch_size: int = 256,
        progress: Progress | None = None,
    ) -> None:
        self.trained = trained
        by_attribute = isinstance(trained.model.condition, Attributes)
        # Attributes stay as they are in all that is decoded; default: all of them absent.
        self.attributes = trained.condition_of(label or "none", 1) if by_attribute else None
        self.label = None if label is None or by_attribute else trained.class_number(label)
        self.inputs = self._labelled(inputs)
        self._limit = limit
        self._batch_size = batch_size
        self._progress = progress
        self._model: Any = trained.model
        self.own = "encode" not in of(trained.model)
        self.has_posterior = False
        self._shapes = self._layout()
        self.normal = self.own or self.has_posterior

    @property
    def grid(self) -> bool:
        """Whether codes are laid out on a grid, where one value says little by itself."""
        return any(len(shape) > 1 for shape in self._shapes.values())

    @torch.no_grad()
    def _layout(self) -> dict[str, torch.Size]:
        """Return the shape of each part, from one sample; raises CapabilityError for integers."""
        if self.own:
            return {"z": self._model.draw_latent(Noise(0, [0])).shape[1:]}
        _, _, x, y = next(in_batches(self.trained, self.inputs, batch_size=1))
        found = self._model.encode(x, y)
        parts = latent_parts(found)
        self.has_posterior = isinstance(found, Mapping) and "log_variance" in found
        if not all(part.is_floating_point() for part in parts.values()):
            able = [
                name
                for name in registry.names()
                if name != self.trained.name
                and {"encode", "decode"} <= set(of(registry.model_class(name)))
            ]
            raise CapabilityError(
                f"the latent of this {self.trained.name} is symbols, which have nothing between "
                f"them; models that can: {', '.join(able)}"
            )
        return {name: part.shape[1:] for name, part in parts.items()}

    # -- there and back --------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> Codes:
        """Return the codes of named native rows."""
        if self.own:
            return Codes(
                inputs, self._model.draw_latent(_noise(self._model, inputs.names)).cpu(), None
            )
        means, variances = [], []
        batches = in_batches(
            self.trained,
            inputs,
            batch_size=self._batch_size,
            what="encoded",
            progress=self._progress if len(inputs) > 1 else None,
        )
        for _, _, x, y in batches:
            found = self._model.encode(x, y)
            parts = latent_parts(found).values()
            means.append(torch.cat([part.float().flatten(1).cpu() for part in parts], 1))
            if self.has_posterior:
                variances.append(found["log_variance"].float().flatten(1).exp().cpu())
        return Codes(inputs, torch.cat(means), torch.cat(variances) if variances else None)

    @torch.no_grad()
    def decode(self, z: Tensor, labels: list[int | None] | Tensor) -> Tensor:
        """Return native rows (n, *spec.shape) of codes (n, z).

        labels: the class of each row, for a conditional model, or weights of the classes (n, k),
        for one that mixes them; a label of the space goes first.
        """
        out = []
        for start in range(0, len(z), self._batch_size):
            rows = z[start : start + self._batch_size].to(self._model.device)
            sizes = [shape.numel() for shape in self._shapes.values()]
            parts = {
                name: part.unflatten(1, shape)
                for (name, shape), part in zip(
                    self._shapes.items(), rows.split(sizes, dim=1), strict=True
                )
            }
            y = None
            if self._model.condition is not None:
                own = labels[start : start + len(rows)]
                if self.label is not None:
                    own = [self.label] * len(rows)
                y = torch.as_tensor(own if self.attributes is None else self.attributes)
                y = y.expand(len(rows), *y.shape[1:]).to(self._model.device)
            x = self._model.decode(parts.get("z", parts), y)
            out.append(self.trained.view.invert(x.cpu()))
            if self._progress is not None:
                self._progress("decoded", len(rows), len(z))
        return torch.cat(out)

    # -- data ------------------------------------------------------------------------------------

    @functools.cached_property
    def codes(self) -> Codes:
        """Codes of the data, of as many samples as the limit, spread evenly."""
        rows = torch.arange(len(self.inputs))
        if self._limit < len(rows):
            rows = torch.linspace(0, len(rows) - 1, self._limit).round().long()
        return self.encode(_rows(self.inputs, rows.tolist()))

    def class_number(self, name: str) -> int:
        """Return the number of a class of the data; raises DataError where classes are unknown."""
        if not isinstance(self.trained.condition, Classes) or self.inputs.labels is None:
            raise DataError(
                f"{self.inputs.where}: the classes are not known; give a labelled data set, or "
                "files in folders called as the run's classes"
            )
        return self.trained.condition.index(name)

    def class_name(self, number: int | None) -> str:
        """Return what a class is called; of None an empty string."""
        names = self.trained.condition.names if self.trained.condition is not None else ()
        return "" if number is None else (names[number] if names else str(number))

    # -- points ----------------------------------------------------------------------------------

    def point(self, text: str) -> Point:
        """Return the point that a text names; raises DataError for none.

        ``class:NAME``: the mean code of a class. A number: so many in the data, from 0 on. The
        name of a sample, as `reduce` writes it. The path of a file in the run's format.
        """
        kind, _, name = text.partition(":")
        if kind == "class" and name:
            return self._class_mean(name)
        if text.isdigit():
            number = int(text)
            if number >= len(self.inputs):
                raise DataError(
                    f"{self.inputs.where} has the samples 0 to {len(self.inputs) - 1}, no {number}"
                )
            return self._sample(self.inputs, number)
        if text in self.inputs.names:
            return self._sample(self.inputs, self.inputs.names.index(text))
        if Path(text).expanduser().is_file():
            require(self._model, "encode")
            return self._sample(open_inputs(self.trained, text), 0)
        raise DataError(
            f"{text!r} is no file, no number or name of a sample in {self.inputs.where}, and no "
            "class:NAME"
        )

    def points(self, texts: tuple[str, ...], count: int, seed: int) -> list[Point]:
        """Return the points that are named, or else `count` samples of the data drawn by seed."""
        if texts:
            return [self.point(text) for text in texts]
        return self.drawn(range(len(self.inputs)), count, seed)

    def drawn(self, rows: Any, count: int, seed: int) -> list[Point]:
        """Return at most `count` samples of these rows of the data, drawn by seed."""
        rows = list(rows)
        order = torch.randperm(len(rows), generator=generator("latent", seed))[:count]
        return [self._sample(self.inputs, rows[place]) for place in order.tolist()]

    def _sample(self, inputs: Inputs, number: int) -> Point:
        one = self._labelled(_rows(inputs, [number]))
        label = None if one.labels is None else one.labels[0]
        return Point(one.names[0], self.encode(one).z[0], label, one.fetch(0, 1)[0])

    def _labelled(self, inputs: Inputs) -> Inputs:
        """Return inputs whose unknown classes are the label that was asked for."""
        if inputs.labels is not None or self.trained.model.condition is None:
            return inputs
        if self.attributes is not None:
            return inputs
        if self.label is None:
            raise DataError(
                f"{inputs.where}: this {self.trained.name} is conditional and the class is not "
                "known; say which (--label), or lay files out in folders called as its classes"
            )
        return dataclasses.replace(inputs, labels=[self.label] * len(inputs))

    def _class_mean(self, name: str) -> Point:
        number = self.class_number(name)
        chosen = torch.tensor(self.codes.labels) == number
        if not chosen.any():
            raise DataError(f"{self.inputs.where}: none of the {len(chosen)} samples is of {name}")
        mean = self.codes.z[chosen].mean(0)
        return Point(f"mean of {self.class_name(number)}", mean, number, None)


def latent(
    run: str | Path,
    source: str = "",
    *,
    split: str = "test",
    limit: int = 2000,
    label: str | None = None,
    checkpoint: str = "auto",
    device: str = "auto",
    batch_size: int = 256,
    progress: Progress | None = None,
) -> LatentSpace:
    """Open the latent space of a trained run, with the data that it is to be explored with.

    source, split: as in `open_inputs`. limit: how many samples at most are encoded where many are
    needed (means, directions, maps), spread evenly. label: the class that a conditional model
    decodes by; default that of the nearest sample at hand. A model that makes samples of noise but
    can't encode, as a GAN, is explored by its own samples: number i is that of seed 0, and there
    is no source. Raises CapabilityError, naming models that can, for a model that can't decode.
    """
    check("limit", limit, low=1)
    check("batch_size", batch_size, low=1)
    trained = load(run, checkpoint=checkpoint, device=device)
    if source or "draw_latent" not in of(trained.model):
        require(trained.model, "encode")
    require(trained.model, "decode")
    if "encode" in of(trained.model):
        inputs = open_inputs(trained, source, split=split)
    else:
        inputs = _own_samples(trained, limit, label)
    return LatentSpace(
        trained, inputs, limit=limit, label=label, batch_size=batch_size, progress=progress
    )


def _own_samples(trained: Trained, n: int, label: str | None) -> Inputs:
    """Return the first n samples that the model itself makes with seed 0."""
    model: Any = trained.model
    names = [f"sample-{number:06d}" for number in range(n)]
    by_attribute = isinstance(model.condition, Attributes)
    y = model.default_condition(0, n)
    if y is not None and (label is not None or by_attribute):
        y = trained.condition_of(label or "none", n)

    def fetch(start: int, end: int) -> Tensor:
        z = model.draw_latent(_noise(model, names[start:end]))
        x = model.decode(z, None if y is None else y[start:end].to(model.device))
        return trained.view.invert(x.cpu())

    labels = None if y is None or by_attribute else y.tolist()
    return Inputs(f"samples of this {trained.name}", names, labels, fetch)


def _noise(model: Any, names: list[str]) -> Noise:
    """Return the noise of samples by their names."""
    return Noise(0, [int(name.rpartition("-")[2]) for name in names], device=model.device)


def _rows(inputs: Inputs, rows: list[int]) -> Inputs:
    """Return some rows of the inputs."""
    return Inputs(
        inputs.where,
        [inputs.names[row] for row in rows],
        None if inputs.labels is None else [inputs.labels[row] for row in rows],
        lambda start, end: torch.cat([inputs.fetch(row, row + 1) for row in rows[start:end]]),
    )
