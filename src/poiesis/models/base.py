"""What a model is: one class, one configuration; and how it asks to be trained.

A model names its optimizers and its stages of phases; `poiesis.training.engine` runs them. A
phase's loss returns one value per sample, in float32; the engine reduces, scales, accumulates,
clips and steps. Shape letters: b batch, c channels, h height, w width, t time or tokens,
v vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from poiesis.errors import ConfigError, suggest
from poiesis.rng import Draws, Noise
from poiesis.sampling import counting
from poiesis.spec import Attributes, Captions, Condition, Spec

__all__ = [
    "Batch",
    "GenerativeModel",
    "Loss",
    "Optim",
    "Phase",
    "Schedule",
    "Stage",
    "autocast",
    "low_weights",
    "preset",
    "within",
]

Loss = tuple[Tensor, dict[str, Tensor | float]]
"""(one loss value per sample, shape (b,), float32; named scalars or (b,) tensors to log)."""

F = TypeVar("F", bound=Callable[..., Any])


def preset(function: F) -> F:
    """Mark a static method ``name(spec) -> Config`` as a named preset of its model."""
    function._is_preset = True  # type: ignore[attr-defined]
    return function


@dataclass
class Batch:
    """What a loss sees: data in the model's view, conditions, and keyed noise.

    x: shape (b, *view.shape), None in a phase without data. condition: as `condition_on` returned
    it, int64 (b,), attributes float (b, k), captions int64 (b, length), pictures, or None.
    index: int64 (b,), positions in the data set. draws: the noise source of this phase and step.
    """

    x: Any
    condition: Tensor | None
    index: Tensor
    draws: Draws
    size: int
    training: bool = True

    def randn(self, *shape: int) -> Tensor:
        """Standard normal draws, shape (b, *shape)."""
        return self.draws.randn(*shape)

    def rand(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), shape (b, *shape)."""
        return self.draws.rand(*shape)

    def randint(self, high: int, *shape: int) -> Tensor:
        """Uniform integers 0…high-1, shape (b, *shape)."""
        return self.draws.randint(high, *shape)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factor over a stage: a linear warm-up, then constant, cosine or linear."""

    kind: Literal["constant", "cosine", "linear"] = "constant"
    warmup: float = 0
    """Steps if ≥ 1, else a share of the stage."""
    start: float = 0.0
    """Share of the stage after which a linear decay begins."""
    final: float = 0.0
    """Factor at the end of the decay."""


@dataclass(frozen=True, kw_only=True)
class Optim:
    """One optimizer over named networks (attributes of the model; "" is the whole model)."""

    kind: Literal["adam", "adamw", "rmsprop", "sgd", "adamax", "muon"] = "adam"
    networks: tuple[str, ...] = ("",)
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    """sgd, rmsprop and muon."""
    decay_matrices_only: bool = False
    """Leave parameters of fewer than two dimensions without weight decay."""
    select: Callable[[str, nn.Parameter], bool] | None = None
    """Takes (name within the model, parameter): which of the networks' parameters; None is all."""
    schedule: Schedule = field(default_factory=Schedule)
    final_betas: tuple[float, float] | None = None
    """Betas at the end of the schedule's decay, on its curve; None leaves them as they are."""
    clip: float | None = None
    """Largest gradient norm over this optimizer's parameters."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One loss and the optimizers it steps; only their parameters get gradients.

    every: run in steps divisible by it. repeat: times per step, each with a fresh batch; phases'
    first (second, …) repeats share one batch. data: the split it draws from, None for no data.
    """

    name: str
    loss: Callable[[Batch, int], Loss]
    step: tuple[str, ...]
    every: int = 1
    repeat: int = 1
    data: str | None = "train"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A span of training: its phases, batch size, share of the budget and view of the data."""

    name: str = "train"
    phases: tuple[Phase, ...]
    batch_size: int
    share: float = 1.0
    """Share of the run's steps (normalised over the stages)."""
    view: Spec | None = None
    """View of the data in this stage; None is the model's own."""
    transform: Callable[[Batch], Batch] | None = None
    """Applied to each batch without gradients, e.g. images to codes of a trained first stage."""
    reset_optimizers: bool = False
    """Start this stage with fresh optimizer states."""


def within(network: str, optim: Optim) -> Optim:
    """Return the optimizer of a part, whose names are those within the part, for the whole."""
    inner, prefix = optim.select, f"{network}."
    names = tuple(f"{prefix}{name}" if name else network for name in optim.networks)
    if inner is None:
        return dataclasses.replace(optim, networks=names)

    def select(name: str, parameter: nn.Parameter) -> bool:
        return inner(name.removeprefix(prefix), parameter)

    return dataclasses.replace(optim, networks=names, select=select)


class GenerativeModel(nn.Module):
    """Base of all models.

    A subclass nests frozen keyword-only dataclasses `Config` and `Sampling`, whose fields carry
    docstrings, and static methods marked `@preset`, of which `default` must exist. It is built as
    ``cls(config, view, condition)``, where `view` is what `cls.view(config, native_spec)` returned,
    and ``parts=`` besides where it has parts.
    """

    Config: ClassVar[type]
    Sampling: ClassVar[type]
    fp32_sampling: ClassVar[bool] = False
    """Sample in float32 even where bf16 is in hardware (where low precision brings nothing)."""
    mixes_classes: ClassVar[bool] = False
    """Instead of classes (b,), a condition may be weights of the classes or attributes (b, k)."""

    reads_captions: ClassVar[bool] = False
    """Instead of classes, a condition may be captions, int64 (b, length)."""
    reads_pictures: ClassVar[bool] = False
    """Instead of classes, a condition may be pictures, as `View.condition` gives them."""

    config: Any
    spec: Any
    condition: Any
    """The spec of the condition: `Classes`, `Attributes` (if it mixes classes), `Captions` or
    `Picture` (if it reads them) or None."""
    progress: float = 0.0
    """Share of the stage's steps that are done, for what follows a schedule: the engine sets it."""

    def __init__(self, config: Any, spec: Spec, condition: Condition | None = None) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.condition = condition

    # -- what the model declares ---------------------------------------------------------------

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Spec:
        """Return the view of native data `spec` that this model learns; raises SpecError."""
        raise NotImplementedError

    @classmethod
    def parts(cls, config: Any) -> Mapping[str, str]:
        """Return part name → run folder or registry name of the models this one is built on."""
        return {}

    @classmethod
    def view_with(cls, config: Any, spec: Spec, parts: Mapping[str, Any]) -> Spec:
        """Return the view, where it depends on the parts, too."""
        return cls.view(config, spec)

    def optimizers(self) -> Mapping[str, Optim]:
        """Return the named optimizers."""
        raise NotImplementedError

    def stages(self) -> Sequence[Stage]:
        """Return the stages of training, in order."""
        raise NotImplementedError

    def ema(self) -> Mapping[str, float]:
        """Return network name ("" is all) → decay per step of its averaged weights; 0 is none.

        It may change with `progress`, but not from or to 0.
        """
        return {}

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Draw len(noise) samples in the model's view, shape (n, *spec.shape)."""
        raise NotImplementedError

    # -- optional hooks ------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> None:
        """Initialise from a first batch, once, before training."""

    def enter_stage(self, stage: Stage) -> None:
        """Get ready for a stage: its networks and sizes; also called when resuming inside it."""

    def after_step(self, phase: Phase, step: int) -> None:
        """Do what follows an optimizer step: codebook averages, weight clipping."""

    def keep_examples(self, held_out: Callable[[int], tuple[Tensor, Tensor | None]]) -> None:
        """Keep some held-out rows, to have something to sample from; called once, before training.

        held_out(n): at most n rows in the view and their conditions.
        """

    def settle(self, batches: Callable[[int], Iterator[Batch]]) -> None:
        """Bring buffers that follow from all the data and the weights up to date.

        Called without gradients and with the averaged weights, before samples are drawn and
        before a checkpoint. batches(n): at most n training rows, spread evenly, unaugmented.
        """

    def validate(self, batch: Batch) -> dict[str, Tensor] | None:
        """Return per-sample values (b,) to watch on held-out data, the first to be minimised."""
        return None

    def extra_state(self) -> dict[str, Any]:
        """Return tensors and JSON values beyond parameters and buffers that a resume needs."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` returned."""

    per_process: ClassVar[frozenset[str]] = frozenset()
    """Keys of `extra_state` that differ between processes (a replay buffer, chains)."""

    # -- what every model then can do ----------------------------------------------------------

    @classmethod
    def presets(cls) -> dict[str, Callable[[Spec], Any]]:
        """Return preset name → function of the native spec."""
        found: dict[str, Callable[[Spec], Any]] = {}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).items():
                # The mark is on the static method or, in the other order, on its function.
                marked = (value, getattr(value, "__func__", None))
                if any(getattr(function, "_is_preset", False) for function in marked):
                    found[name] = getattr(cls, name)
        return found

    @classmethod
    def preset(cls, name: str, spec: Spec) -> Any:
        """Return the full config of a named preset for data of this spec; raises ConfigError.

        Dashes in the name are as good as underscores.
        """
        presets = cls.presets()
        name = name.replace("-", "_")
        if name not in presets:
            hint = suggest(name, presets) or f"; known: {', '.join(presets)}"
            raise ConfigError(f"{cls.__name__} has no preset {name!r}{hint}")
        return presets[name](spec)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; parts, models themselves, keep evaluating as they were trained to."""
        super().train(mode)
        for module in self.modules():
            if module is not self and isinstance(module, GenerativeModel):
                module.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def networks(self) -> dict[str, nn.Module]:
        """Return the top-level networks by name."""
        return dict(self.named_children())

    def condition_on(
        self, x: Tensor, y: Tensor | None, noise: Draws | Noise, *, training: bool = False
    ) -> Tensor | None:
        """Return the conditions of rows x in the view, as losses and `sample` take them.

        y: what the data say of the rows, None for nothing. A model may make conditions of x itself,
        with noise where that is random; training: with what makes learning from them robust.
        """
        return y if self.condition is not None else None

    def default_condition(self, first: int, n: int) -> Tensor | None:
        """Return conditions for samples first…first+n-1; None if unconditional.

        Each class in turn, or none of the attributes and each of them alone in turn, or each of
        the captions that a run keeps.
        """
        if self.condition is None:
            return None
        if isinstance(self.condition, Captions):
            return torch.tensor(self.condition.in_turn(first, n), dtype=torch.int64)
        if isinstance(self.condition, Attributes):
            alone = torch.eye(self.condition.count + 1)[:, 1:]
            return alone[torch.arange(first, first + n) % len(alone)]
        return torch.arange(first, first + n) % self.condition.count

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        condition: Tensor | None = None,
        options: Any = None,
        batch_size: int = 64,
        first: int = 0,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draw n samples in the model's view, on the CPU, shape (n, *spec.shape).

        Sample i depends on (seed, first + i) alone, so the batch size changes nothing but speed
        (up to rounding of batched arithmetic). condition: (n, …), else the default.
        """
        options = self.Sampling() if options is None else options
        if condition is None:
            condition = self.default_condition(first, n)
        was_training = self.training
        self.eval()
        out = []
        try:
            for start in range(0, n, batch_size):
                count = min(batch_size, n - start)
                indices = range(first + start, first + start + count)
                noise = Noise(seed, indices, device=self.device)
                chosen = None
                if condition is not None:
                    chosen = condition[start : start + count].to(self.device)
                use = "fp32" if self.fp32_sampling and precision == "auto" else precision
                with autocast(self.device, use), low_weights(self, use):
                    out.append(self.draw(noise, chosen, options).cpu())
                counting.drawn(count)
                if progress is not None:
                    progress(count)
        finally:
            self.train(was_training)
        return torch.cat(out) if out else torch.empty(0, *self.spec.shape)

    def named_networks(self, names: Sequence[str]) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (name within the model, parameter) of the given networks; "" is the whole model."""
        for network in names:
            module = self.get_submodule(network)
            for name, parameter in module.named_parameters():
                yield (f"{network}.{name}" if network else name), parameter


def hardware_bf16(device: torch.device) -> bool:
    """Return whether the device computes bf16 in hardware (GPU of Ampere or later, AMX, AVX512)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    cpu = torch.cpu
    return bool(
        getattr(cpu, "_is_amx_tile_supported", lambda: False)()
        or getattr(cpu, "_is_avx512_bf16_supported", lambda: False)()
    )


def autocast(
    device: torch.device, precision: Literal["auto", "fp32", "bf16"]
) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context of a precision; auto is bf16 where the hardware has it."""
    low = hardware_bf16(device) if precision == "auto" else precision == "bf16"
    if not low:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


_MATRICES = (nn.Linear, nn.modules.conv._ConvNd)
"""Modules whose weights autocast turns into bf16 at every call."""


@contextlib.contextmanager
def low_weights(
    model: nn.Module, precision: Literal["auto", "fp32", "bf16"] = "auto"
) -> Iterator[None]:
    """Hold matrices and kernels in the precision that `autocast` computes them in, for drawing.

    The numbers are those of autocast alone, which would round every weight anew in every pass of
    the network. Weights split over processes stay as they are.
    """
    weights = [
        parameter
        for module in model.modules()
        if isinstance(module, _MATRICES)
        for parameter in module.parameters(recurse=False)
    ]
    device = weights[0].device if weights else torch.device("cpu")
    low = hardware_bf16(device) if precision == "auto" else precision == "bf16"
    if not low or any(hasattr(weight, "full_tensor") for weight in weights):
        yield
        return
    kept = {weight: weight.data for weight in weights}
    try:
        for weight, data in kept.items():
            weight.data = data.bfloat16()
        yield
    finally:
        for weight, data in kept.items():
            weight.data = data


def config_names(cls: type[GenerativeModel]) -> list[str]:
    """Return the names of a model's configuration fields."""
    return [f.name for f in dataclasses.fields(cls.Config)]
