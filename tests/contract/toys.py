"""Toy models that ask the engine for everything the hard families need, and note what they saw."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from poiesis.models.base import Batch, GenerativeModel, Optim, Phase, Schedule, Stage, preset
from poiesis.rng import Noise
from poiesis.spec import Grid


class Toy(GenerativeModel):
    """A linear decoder of 4 random numbers to an image in [0, 1]; its subclasses train it oddly."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options."""

        batch_size: int = 8
        """Samples per step."""
        part: str = ""
        """A run that this one is built on."""

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        """No options."""

    @preset
    @staticmethod
    def default(spec: Any) -> Any:
        """The only one."""
        return Toy.Config()

    @classmethod
    def view(cls, config: Any, spec: Any) -> Any:
        return Grid(channels=1, size=(8, 8), domain="unit", levels=spec.levels)

    def __init__(self, config: Any, spec: Any, condition: Any = None) -> None:
        super().__init__(config, spec)
        self.generator = nn.Linear(4, 64)
        self.critic = nn.Linear(64, 1)
        self.seen: list[Any] = []

    def optimizers(self) -> dict[str, Optim]:
        return {"generator": Optim(networks=("generator",), lr=1e-2)}

    def one_stage(self, *phases: Phase) -> list[Stage]:
        return [Stage(phases=phases, batch_size=self.config.batch_size)]

    def stages(self) -> list[Stage]:
        return self.one_stage(Phase(name="fit", loss=self.fit_loss, step=("generator",)))

    def make(self, z: Tensor) -> Tensor:
        return self.generator(z).sigmoid()

    def fit_loss(self, batch: Batch, step: int) -> Any:
        error = self.make(batch.randn(4)) - batch.x.flatten(1)
        return error.square().mean(1), {}

    def draw(self, noise: Noise, condition: Any, options: Any) -> Tensor:
        return self.make(noise.randn(4)).reshape(-1, 1, 8, 8)


class Growing(Toy):
    """Two stages: a small view and its network, then the full one with fresh optimizers."""

    def __init__(self, config: Any, spec: Any, condition: Any = None) -> None:
        super().__init__(config, spec)
        self.small = nn.Linear(4, 16)
        self.register_buffer("level", torch.zeros((), dtype=torch.long))

    def optimizers(self) -> dict[str, Optim]:
        decay = Schedule(kind="linear")
        return {"all": Optim(networks=("small", "generator"), lr=1e-2, schedule=decay)}

    def stages(self) -> list[Stage]:
        phase = Phase(name="fit", loss=self.stage_loss, step=("all",))
        small = dataclasses.replace(self.spec, size=(4, 4))
        return [
            Stage(name="small", phases=(phase,), batch_size=6, share=1, view=small),
            Stage(name="full", phases=(phase,), batch_size=3, share=2, reset_optimizers=True),
        ]

    def enter_stage(self, stage: Stage) -> None:
        self.level.fill_(["small", "full"].index(stage.name))

    def stage_loss(self, batch: Batch, step: int) -> Any:
        self.seen.append((step, tuple(batch.x.shape), batch.x.detach().clone(), batch.index))
        network = self.generator if self.level else self.small
        error = network(batch.randn(4)).sigmoid() - batch.x.flatten(1)
        return error.square().mean(1), {}


class Lazy(Toy):
    """A penalty every 16 steps through the optimizer of the main loss."""

    def stages(self) -> list[Stage]:
        return self.one_stage(
            Phase(name="fit", loss=self.fit_loss, step=("generator",)),
            Phase(name="penalty", loss=self.penalty, step=("generator",), every=16),
        )

    def penalty(self, batch: Batch, step: int) -> Any:
        self.seen.append(step)
        return self.make(batch.randn(4)).mean(1) * 16, {}


class FourPhases(Toy):
    """Four losses over two optimizers, each stepped twice a step; one repeats."""

    def optimizers(self) -> dict[str, Optim]:
        return {n: Optim(networks=(n,), lr=1e-3) for n in ("critic", "generator")}

    def stages(self) -> list[Stage]:
        return self.one_stage(
            Phase(name="critic latent", loss=self.critic_loss, step=("critic",), repeat=2),
            Phase(name="critic reference", loss=self.critic_loss, step=("critic",)),
            Phase(name="generator latent", loss=self.generator_loss, step=("generator",)),
            Phase(name="generator reference", loss=self.generator_loss, step=("generator",)),
        )

    def note(self, batch: Batch) -> None:
        names = {n.split(".")[0] for n, p in self.named_parameters() if p.requires_grad}
        weights = {n: p.detach().clone() for n, p in self.named_parameters()}
        self.seen.append((names, weights, batch.index.tolist()))

    def critic_loss(self, batch: Batch, step: int) -> Any:
        self.note(batch)
        fake = self.critic(self.make(batch.randn(4)))
        return (fake - self.critic(batch.x.flatten(1))).flatten(), {}

    def generator_loss(self, batch: Batch, step: int) -> Any:
        self.note(batch)
        return -self.critic(self.make(batch.randn(4))).flatten(), {}


class OnAnother(Toy):
    """Learns the codes that a trained first stage gives to the data, which stays as it is."""

    @classmethod
    def parts(cls, config: Any) -> dict[str, str]:
        return {"first": config.part}

    def __init__(self, config: Any, spec: Any, condition: Any = None, *, parts: Any) -> None:
        super().__init__(config, spec)
        self.first = parts["first"]
        self.prior = nn.Linear(4, self.first.config.latent_dim)

    def optimizers(self) -> dict[str, Optim]:
        return {"prior": Optim(networks=("prior",), lr=1e-2)}

    def stages(self) -> list[Stage]:
        phase = Phase(name="prior", loss=self.prior_loss, step=("prior",))
        return [Stage(phases=(phase,), batch_size=8, transform=self.to_codes)]

    def to_codes(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, x=self.first.encode(batch.x)["z"])

    def prior_loss(self, batch: Batch, step: int) -> Any:
        self.seen.append((batch.x.shape, batch.x.requires_grad, self.first.training))
        return (self.prior(batch.randn(4)) - batch.x).square().mean(1), {}

    def draw(self, noise: Noise, condition: Any, options: Any) -> Tensor:
        return self.first.decode(self.prior(noise.randn(4)))


class DataDependent(Toy):
    """Starts its bias at the mean of a first batch."""

    def prepare(self, batch: Batch) -> None:
        self.seen.append(batch.x)
        with torch.no_grad():
            self.generator.bias.copy_(batch.x.mean(0).clamp(0.01, 0.99).logit().flatten())


class Replay(Toy):
    """A phase without data that learns from a buffer of its own samples, as an energy model does.

    The buffer is larger than the state of the network and says that it is each process's own.
    """

    per_process: ClassVar[frozenset[str]] = frozenset({"buffer", "filled"})

    def __init__(self, config: Any, spec: Any, condition: Any = None) -> None:
        super().__init__(config, spec)
        self.buffer = torch.zeros(100, 64)
        self.filled = 0

    def optimizers(self) -> dict[str, Optim]:
        return {n: Optim(networks=(n,), lr=1e-2) for n in ("critic", "generator")}

    def stages(self) -> list[Stage]:
        return self.one_stage(
            Phase(name="fit", loss=self.fit_loss, step=("generator",)),
            Phase(name="dream", loss=self.dream, step=("critic",), data=None),
        )

    def dream(self, batch: Batch, step: int) -> Any:
        self.seen.append((batch.x, batch.condition, batch.size))
        fresh = self.make(batch.randn(4)).detach().float()
        places = torch.arange(self.filled, self.filled + batch.size) % 100
        self.buffer[places] = fresh
        self.filled += batch.size
        old = self.buffer[batch.randint(min(100, self.filled))]
        return (self.critic(fresh) - self.critic(old)).flatten().square(), {}

    def extra_state(self) -> dict[str, Any]:
        return {"buffer": self.buffer, "filled": self.filled}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.buffer, self.filled = state["buffer"].clone(), state["filled"]


class PerSample(Toy):
    """Notes the noise of each row, and can return losses of a wrong shape or not finite."""

    reduce = False
    bad_steps: ClassVar[set[int]] = set()

    def optimizers(self) -> dict[str, Optim]:
        return {"generator": Optim(kind="sgd", networks=("generator",), lr=0.5)}

    def fit_loss(self, batch: Batch, step: int) -> Any:
        z = batch.randn(4)
        self.seen.append((step, z, batch.index))
        loss = (self.make(z) - batch.x.flatten(1)).square().mean(1)
        if step in self.bad_steps:
            loss = loss * torch.inf
        return (loss.mean() if self.reduce else loss), {}


class Everything(Replay):
    """All that a resume must bring back: dropout, noise, a buffer, averages, two optimizers."""

    def optimizers(self) -> dict[str, Optim]:
        curve = Schedule(kind="cosine", warmup=3)
        return {
            "critic": Optim(kind="sgd", networks=("critic",), lr=1e-2, momentum=0.9),
            "generator": Optim(kind="adamw", networks=("generator",), lr=1e-2, schedule=curve),
        }

    def ema(self) -> dict[str, float]:
        return {"generator": 0.9}

    def make(self, z: Tensor) -> Tensor:
        return nn.functional.dropout(self.generator(z), 0.3, self.training).sigmoid()

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        return {"error": (self.make(batch.randn(4)) - batch.x.flatten(1)).square().mean(1)}
