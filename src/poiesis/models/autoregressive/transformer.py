"""Decoder-only transformer over text tokens or over the pixels of an image.

One class, two recipes. `nanogpt` is GPT-2 as nanoGPT trains it: pre-LayerNorm, learned positions,
GELU, tied head, AdamW. `modern` is what small models learn fastest with today: rotary positions
(arXiv 2104.09864), normalised queries and keys (2010.04245), ReLU² (2109.08668), RMSNorm without
parameters (1910.07467), zero-initialised projections, an untied zero head, softly capped logits
(2408.00118), each embedding smeared with the one before (the "smear" of modded-nanogpt, here by
channel) and Muon for the hidden matrices (2502.16982). Shape letters: b batch, t tokens,
d width, h heads, e width of a head, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poiesis.config import check
from poiesis.errors import ConfigError, SpecError
from poiesis.models.base import Batch, GenerativeModel, Loss, Optim, Phase, Schedule, Stage, preset
from poiesis.models.capabilities import LogProb
from poiesis.nn.attention import Block, Cache, rms_norm, rotary_table
from poiesis.nn.dropout import dropout
from poiesis.rng import Noise
from poiesis.sampling.decoding import Decoding, Feed, autoregress, prompt_lists
from poiesis.spec import Classes, Grid, Spec, Tokens

__all__ = ["Transformer"]

_SOFTCAP = 15.0
"""Logits are squashed into ±15, as modded-nanogpt and nanochat do (30 in arXiv 2408.00118)."""

_MAX_LENGTH = 16_384
"""Longest whole sequence; the cost of attention grows with its square."""


class Transformer(GenerativeModel):
    """Decoder-only transformer: predicts each token from those before it, so p(x) is exact.

    Good at: text; exact likelihood, hence compression and comparison; continuing a given
    beginning, of a text or of an image; training that just works.

    Not good at: fast sampling, one pass per token; images beyond about 32 px, whose cost grows
    with the square of the number of pixels; there is no latent space.

    Cost: about 6 · parameters operations per token trained, 2 per token drawn (with its cache).

    Text is a stream: the model sees windows of `context` + 1 tokens, of which the first is context
    only. An image is the whole sequence of its pixels in raster order, channels interleaved; a
    start symbol, which is the class embedding if `conditional`, stands before it. How a text grows
    beyond the context: see `Session`.

    Papers: Vaswani et al., Attention Is All You Need, arXiv:1706.03762; Radford et al., Language
    Models are Unsupervised Multitask Learners (GPT-2), 2019; Chen et al., Generative Pretraining
    from Pixels, 2020. The parts of `modern` are cited at the top of the module.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """What a transformer is made of and how it is trained."""

        recipe: Literal["modern", "nanogpt"] = "modern"
        """modern learns faster; nanogpt is the GPT-2 baseline as nanoGPT trains it."""
        layers: int = 4
        """Number of blocks, [1, 96]."""
        heads: int = 4
        """Attention heads; divides `width`."""
        width: int = 128
        """Width of the stream between the blocks, [8, 16384]."""
        context: int = 64
        """Tokens seen at once in a stream, [2, 16384]; whole sequences are seen whole."""
        dropout: float = 0.0
        """Share of embeddings and branch outputs dropped in training, [0, 0.9]: raise it for little
        data. nanogpt drops attention weights too, for which a CPU has no fast kernel."""
        conditional: bool = False
        """Condition on the class, which takes the place of the start symbol (not for text)."""
        grid: tuple[int, ...] = ()
        """Axes that a whole sequence runs through, the last one fastest: (height, width, channels)
        of an image. A learned position for each axis helps small images. () is a plain sequence."""
        batch_size: int = 12
        """Sequences per step."""
        learning_rate: float = 2e-3
        """Peak learning rate of AdamW."""
        muon_learning_rate: float = 0.02
        """Peak learning rate of Muon; only modern uses it."""

        def __post_init__(self) -> None:
            check("layers", self.layers, low=1, high=96)
            check("width", self.width, low=8, high=16384)
            check("heads", self.heads, low=1, high=self.width)
            check("context", self.context, low=2, high=_MAX_LENGTH)
            check("dropout", self.dropout, low=0, high=0.9)
            check("batch_size", self.batch_size, low=1)
            check("learning_rate", self.learning_rate, low=0, open_low=True)
            check("muon_learning_rate", self.muon_learning_rate, low=0, open_low=True)
            for size in self.grid:
                check("grid", size, low=1)
            if self.width % self.heads:
                raise ConfigError(
                    f"width = {self.width} is no multiple of heads = {self.heads}: "
                    "choose a width that the heads divide"
                )
            if self.recipe == "modern" and (self.width // self.heads) % 2:
                raise ConfigError(
                    f"width / heads = {self.width // self.heads} is odd, but rotary positions "
                    "turn pairs: choose an even width per head"
                )

    @dataclass(frozen=True, kw_only=True)
    class Sampling(Decoding):
        """How tokens are chosen, and how many."""

        length: int | None = None
        """Tokens to draw (of a text: those returned, without the prompt). None: one context of a
        stream, a whole image."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check("length", self.length, low=1)

    fp32_sampling = True

    rotary: Tensor
    first: Tensor

    # -- presets -------------------------------------------------------------------------------

    @preset
    @staticmethod
    def default(spec: Spec) -> Transformer.Config:
        """The modern recipe, sized for minutes on a CPU."""
        if isinstance(spec, Grid):
            h, w = spec.size[0], math.prod(spec.size[1:])
            # A step sees about 2,048 pixels, so that small images come in larger batches.
            batch = min(64, max(4, 2048 // spec.dims))
            # Without dropout it learns the 1,437 training digits by heart after seven epochs.
            # Tiny images learn more from three times the steps than from the larger network.
            layers, width = (3, 64) if spec.dims <= 100 else (4, 128)
            return Transformer.Config(
                layers=layers,
                width=width,
                grid=(h, w, spec.channels),
                batch_size=batch,
                dropout=0.2,
            )
        return Transformer.Config(context=128, batch_size=8)

    @preset
    @staticmethod
    def long(spec: Spec) -> Transformer.Config:
        """The modern recipe for half an hour on a CPU with a text of a million characters."""
        # Eight passes over the text: a wider network needs some dropout then.
        return Transformer.Config(width=192, heads=6, context=256, batch_size=4, dropout=0.1)

    @preset
    @staticmethod
    def modern(spec: Spec) -> Transformer.Config:
        """The modern recipe at the size and batch of `nanogpt`, to compare the two."""
        return Transformer.Config()

    @preset
    @staticmethod
    def nanogpt(spec: Spec) -> Transformer.Config:
        """nanoGPT's character model for a CPU: 4 layers of 128, context 64, batch 12."""
        return Transformer.Config(recipe="nanogpt", learning_rate=1e-3)

    @preset
    @staticmethod
    def nanogpt_gpu(spec: Spec) -> Transformer.Config:
        """nanoGPT's character model for a GPU: 6 layers of 384, context 256, batch 64."""
        return Transformer.Config(
            recipe="nanogpt",
            layers=6,
            heads=6,
            width=384,
            context=256,
            batch_size=64,
            dropout=0.2,
            learning_rate=1e-3,
        )

    # -- construction --------------------------------------------------------------------------

    @classmethod
    def view(cls, config: Any, spec: Spec) -> Tokens:
        """Return the token view of text or images; raises SpecError for other data."""
        if isinstance(spec, Tokens) and spec.stream:
            if config.conditional:
                raise SpecError("text has no classes: set conditional to false")
            view = Tokens(vocabulary=spec.vocabulary, length=config.context, stream=True)
        elif isinstance(spec, Tokens):
            view = spec
        elif isinstance(spec, Grid) and spec.domain in ("levels", "bits") and len(spec.size) < 3:
            levels = 2 if spec.domain == "bits" else spec.levels
            view = Tokens(vocabulary=levels, length=spec.dims)
        else:
            raise SpecError(f"a transformer learns tokens or images of levels, not a {spec}")
        if view.length > _MAX_LENGTH:
            raise SpecError(
                f"a sample of {view.length} tokens is longer than {_MAX_LENGTH}: "
                "use smaller images or shorter sequences"
            )
        if config.grid and (view.stream or math.prod(config.grid) != view.length):
            kind = "a stream" if view.stream else f"{view.length} tokens"
            raise SpecError(f"grid = {config.grid} does not fit {kind}: set it to () or their axes")
        return view

    def __init__(
        self, config: Transformer.Config, spec: Tokens, condition: Classes | None = None
    ) -> None:
        if config.conditional and condition is None:
            raise SpecError("the data has no classes: set conditional to false")
        super().__init__(config, spec, condition if config.conditional else None)
        d, length = config.width, spec.length
        self.is_modern = config.recipe == "modern"
        self.tokens = nn.Embedding(spec.vocabulary, d)
        if not spec.stream:
            self.start = nn.Embedding(1 if self.condition is None else self.condition.count, d)
        axes = config.grid if self.is_modern else (length,)
        self.positions = nn.ParameterList(torch.zeros(size, d) for size in axes)
        if self.is_modern:
            self.smear = nn.Parameter(torch.zeros(d))
            self.register_buffer("rotary", rotary_table(length, d // config.heads), False)
        self.blocks = nn.ModuleList(
            Block(d, config.heads, modern=self.is_modern, dropout=config.dropout)
            for _ in range(config.layers)
        )
        self.norm = rms_norm if self.is_modern else nn.LayerNorm(d, bias=False)
        self.head = nn.Linear(d, spec.vocabulary, bias=False)
        if spec.stream:
            self.register_buffer("first", torch.full((spec.vocabulary,), 1 / spec.vocabulary))
        self._initialise()

    def _initialise(self) -> None:
        scale = 1 / math.sqrt(2 * self.config.layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue  # gains stay one, the smear zero
            if not self.is_modern:
                out = name.endswith(("project.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 * (scale if out else 1))
            elif name.startswith(("tokens", "start")):
                nn.init.normal_(parameter)
            elif name.endswith(("qkv.weight", "up.weight")):
                # Muon moves a matrix by its orthogonal part: start at about that size.
                nn.init.normal_(parameter, std=0.5 / math.sqrt(self.config.width))
            else:
                nn.init.zeros_(parameter)
        if not self.is_modern:
            self.head.weight = self.tokens.weight

    # -- the network ---------------------------------------------------------------------------

    def embed(self, tokens: Tensor, condition: Tensor | None) -> Tensor:
        """Return embeddings (b, t, d) of tokens (b, t); of a whole sequence after its start."""
        x = self.tokens(tokens)
        if not self.spec.stream:
            if condition is None or not self.config.conditional:
                condition = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
            x = torch.cat((self.start(condition).unsqueeze(1), x), dim=1)
        return x + self.smear * F.pad(x, (0, 0, 1, -1)) if self.is_modern else x

    def place(self, at: int, count: int) -> Tensor:
        """Return the learned position embeddings (count, d) from `at` on: the sum over the axes."""
        table = self.positions[0]
        for axis in list(self.positions)[1:]:
            table = table.unsqueeze(-2) + axis
        return table.flatten(0, -2)[at : at + count]

    def stream(
        self,
        x: Tensor,
        at: int = 0,
        caches: Sequence[Cache] | None = None,
    ) -> Tensor:
        """Return the last stream (b, t, d) for embeddings x (b, t, d) at positions from `at` on.

        caches: one for each block, with the keys and values before `at`.
        """
        if len(self.positions):
            x = x + self.place(at, x.size(1))
        rotary = None
        if self.is_modern:
            x = rms_norm(x)
            rotary = self.rotary[at : at + x.size(1)]
        x = dropout(x, self.config.dropout, self.training)
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, caches[i] if caches else None, at)
        return self.norm(x)

    def logits(self, stream: Tensor) -> Tensor:
        """Return logits (…, v), float32, of a last stream (…, d)."""
        logits = self.head(stream).float()
        return _SOFTCAP * torch.tanh(logits / _SOFTCAP) if self.is_modern else logits

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the logits (b, T, v) of the T predicted tokens of x, a batch in the view."""
        return self.logits(self.stream(self.embed(x[:, :-1], condition)))

    def targets(self, x: Tensor) -> Tensor:
        """Return the T predicted tokens (b, T) of x, a batch in the view."""
        return x[:, 1:] if self.spec.stream else x

    def nll(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Return -log p (b, T) in nats of each predicted token, float32."""
        logits = self(x, condition)
        return F.cross_entropy(logits.transpose(1, 2), self.targets(x), reduction="none")

    # -- training ------------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> None:
        """Keep the token frequencies of a first batch: texts without a prompt begin by them."""
        if self.spec.stream:
            counts = torch.bincount(batch.x.flatten(), minlength=self.spec.vocabulary)
            self.first.copy_(counts / counts.sum())

    def loss(self, batch: Batch, step: int) -> Loss:
        """Return the mean -log p per token of each sample, nats (b,)."""
        nll = self.nll(batch.x, batch.condition).mean(1)
        return nll, {"nll": nll.detach()}

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean nats per token of each sample (b,)."""
        return {"nll": self.nll(batch.x, batch.condition).mean(1)}

    def optimizers(self) -> Mapping[str, Optim]:
        """Return AdamW for all (nanogpt), or Muon for hidden matrices and AdamW for the rest."""
        config = self.config
        if not self.is_modern:
            schedule = Schedule(kind="cosine", warmup=100, final=0.1)
            adamw = Optim(
                kind="adamw",
                lr=config.learning_rate,
                betas=(0.9, 0.99),
                weight_decay=0.1,
                decay_matrices_only=True,
                schedule=schedule,
                clip=1.0,
            )
            return {"adamw": adamw}
        schedule = Schedule(kind="linear", warmup=0.01, start=0.4, final=0.0)
        muon = Optim(
            kind="muon",
            lr=config.muon_learning_rate,
            momentum=0.95,
            select=_hidden,
            schedule=schedule,
        )
        adamw = Optim(
            kind="adamw",
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            select=_not_hidden,
            schedule=schedule,
        )
        return {"muon": muon, "adamw": adamw}

    def stages(self) -> Sequence[Stage]:
        """Return one stage of one phase."""
        phase = Phase(name="model", loss=self.loss, step=tuple(self.optimizers()))
        return [Stage(phases=(phase,), batch_size=self.config.batch_size)]

    # -- likelihood ----------------------------------------------------------------------------

    @torch.no_grad()
    def log_prob(
        self, x: Tensor, condition: Tensor | None = None, *, samples: int = 1, seed: int = 0
    ) -> LogProb:
        """Return the exact log p(x) of each sample, nats, the sum over its T predicted tokens.

        Of a stream: log p(the last T tokens | the first one). samples and seed are not needed.
        """
        nats = -self.nll(x, condition).double().sum(1)
        detail = "given the first token" if self.spec.stream else ""
        return LogProb(
            nats=nats, kind="exact", measure="discrete", dims=self.spec.dims, detail=detail
        )

    @torch.no_grad()
    def conditionals(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return log p of each possible token given those before it, (b, T, v)."""
        return self(x, condition).log_softmax(-1)

    def feeder(self, condition: Tensor | None = None) -> Feed:
        """Return what takes new tokens (b, t) and gives the logits (b, v) of the next one."""
        return Session(self, condition, cached=True).feed

    # -- sampling ------------------------------------------------------------------------------

    def draw(self, noise: Noise, condition: Tensor | None, options: Any) -> Tensor:
        """Return whole sequences (b, T), or of a stream texts (b, length or context + 1), int64.

        A text begins with a token drawn by its frequency in the training data.
        """
        prompts = torch.empty(len(noise), 0, dtype=torch.long)
        length = options.length or math.prod(self.spec.shape)
        if self.spec.stream:
            cdf = self.first.double().cumsum(0)
            level = noise.rand(1).double() * cdf[-1]
            prompts = torch.searchsorted(cdf, level, right=True).cpu()
        elif length != self.spec.length:
            raise ConfigError(
                f"length = {length}, but a sample is {self.spec.length} tokens: leave length out"
            )
        new = length - prompts.size(1)
        rows = self._generate(prompts.tolist(), noise, options, condition, new)
        return torch.cat((prompts, torch.tensor(rows, dtype=torch.long)), dim=1)

    def generate(
        self,
        prompts: Sequence[Sequence[int]] | Tensor,
        noise: Noise,
        options: Transformer.Sampling,
        condition: Tensor | None = None,
        *,
        stop: Callable[[int, int], bool] | None = None,
        on_token: Callable[[int, int], None] | None = None,
        cached: bool = True,
    ) -> list[list[int]]:
        """Continue prompts by up to `options.length` tokens; returns the new tokens of each row.

        Every row has its own random stream: it is the same at any batch size, with prompts of any
        lengths beside it, cached or not. on_token(row, token) hears of each token at once; after
        a token for which stop(row, token) is true its row ends. A prompt of a whole sequence (the
        upper half of an image) may be empty. Raises ConfigError for prompts or lengths that don't
        fit.
        """
        rows = prompt_lists(prompts, self.spec.vocabulary)
        if len(rows) != len(noise):
            raise ConfigError(f"{len(rows)} prompts for {len(noise)} samples: give one for each")
        if self.spec.stream:
            if not all(rows):
                raise ConfigError("a prompt is empty: give at least one token to continue")
            length = options.length or self.spec.length
        else:
            room = self.spec.length - max((len(row) for row in rows), default=0)
            length = room if options.length is None else options.length
            if length > room:
                raise ConfigError(
                    f"length = {length} is more than the {room} tokens left after the prompt"
                )
        return self._generate(rows, noise, options, condition, length, stop, on_token, cached)

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        noise: Noise,
        options: Any,
        condition: Tensor | None,
        length: int,
        stop: Callable[[int, int], bool] | None = None,
        on_token: Callable[[int, int], None] | None = None,
        cached: bool = True,
    ) -> list[list[int]]:
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                session = Session(self, condition, cached)
                feed = session.feed
                return autoregress(
                    feed, prompts, noise, options, length=length, stop=stop, on_token=on_token
                )
        finally:
            self.train(training)


class Session:
    """A batch of growing sequences and the keys and values that the model has of them.

    A stream may outgrow the context: then the window moves on by half a context and is read anew,
    with positions from zero as in training (a cache that rolls on would show the model keys that
    saw more than a context, which it never learned from; learned positions can't roll at all).
    So a token sees between context / 2 and context tokens before it, and where the window starts
    depends on the token's position alone: the text is the same with a cache or without.
    """

    def __init__(self, model: Transformer, condition: Tensor | None, cached: bool) -> None:
        self.model = model
        self.condition = condition
        size, layers = model.spec.length, model.config.layers
        self.caches = [Cache(size) for _ in range(layers)] if cached else None
        self.history: Tensor | None = None
        self.count = 0
        self.start = 0

    def feed(self, new: Tensor) -> Tensor:
        """Take new tokens (b, t); return the logits (b, v) of the next one."""
        model, context = self.model, self.model.spec.length
        known = self.history is not None and self.caches is not None and new.size(1) == 1
        joined = new if self.history is None else torch.cat((self.history, new), dim=1)
        self.history = joined[:, -context:]
        self.count += new.size(1)
        start = 0
        if model.spec.stream and self.count > context:
            hop = context // 2
            start = -(-(self.count - context) // hop) * hop
        moved, self.start = start != self.start, start
        if known and not moved:
            at = self.count - start - (1 if model.spec.stream else 0)
            x = model.embed(self.history[:, -2:], self.condition)[:, -1:]
            x = model.stream(x, at, self.caches)
        else:
            window = self.history[:, self.history.size(1) - (self.count - start) :]
            x = model.stream(model.embed(window, self.condition), 0, self.caches)
        return model.logits(x[:, -1])


def _hidden(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter is a matrix between embeddings and head: those Muon is made for."""
    return name.startswith("blocks.") and parameter.ndim == 2


def _not_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter is left to AdamW."""
    return not _hidden(name, parameter)
