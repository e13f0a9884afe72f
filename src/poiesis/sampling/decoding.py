"""From next-token logits to tokens: the decoding controls and the loop, free of any model.

The controls run in the order penalties → temperature → top-k → top-p → min-p, and one token is
drawn by inverting the cumulative distribution at a given uniform number. So all chance comes in
from outside: with one stream of uniforms per sample, a sample does not depend on the batch it was
made in. Shape letters: b batch, t tokens, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poiesis.config import check
from poiesis.errors import ConfigError
from poiesis.rng import Noise

__all__ = [
    "Decoding",
    "Feed",
    "autoregress",
    "choose",
    "filter_logits",
    "min_p",
    "penalize",
    "prompt_lists",
    "top_k",
    "top_p",
]

Feed = Callable[[Tensor], Tensor]
"""New tokens (b, t), int64, t ≥ 0 at the start and 1 after → logits (b, v) of the next token.

What feeds a model remembers the tokens before (a cache, a recurrent state).
"""

_BLOCK = 256
"""Uniforms drawn per sample at a time; fixed, so that the n-th token always uses the n-th one."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a next token is chosen; the defaults sample from the model's own distribution."""

    temperature: float = 1.0
    """Divides the logits, [0, 100]: below 1 safer, above 1 bolder; 0 takes the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens that holds this share of the probability, (0, 1]."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the likeliest, [0, 1]."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt and output less likely, below 1 more, (0, 10]."""

    def __post_init__(self) -> None:
        check("temperature", self.temperature, low=0, high=100)
        check("top_k", self.top_k, low=0)
        check("top_p", self.top_p, low=0, high=1, open_low=True)
        check("min_p", self.min_p, low=0, high=1)
        check("repetition_penalty", self.repetition_penalty, low=0, high=10, open_low=True)


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Return logits (b, v) with those of seen tokens divided (if > 0) or multiplied by `penalty`.

    seen: bool (b, v). The repetition penalty of CTRL (arXiv 1909.05858, section 4.1), in the form
    that also lowers negative logits.
    """
    lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, lowered, logits)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Return logits (b, v) with all but the k largest at -inf; ties with the k-th stay."""
    if k <= 0 or k >= logits.size(-1):
        return logits
    bound = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < bound, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Return logits (b, v) without the tail beyond the likeliest tokens that together reach p.

    The token that crosses p stays, so at least one does (nucleus sampling, arXiv 1904.09751).
    """
    if p >= 1:
        return logits
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    probability = ordered.double().softmax(-1)
    before = probability.cumsum(-1) - probability
    # A hair of slack: a set that reaches p exactly must not grow by a rounding error.
    beyond = before >= p - 1e-9
    beyond[..., 0] = False
    drop = torch.zeros_like(beyond).scatter(-1, index, beyond)
    return logits.masked_fill(drop, -torch.inf)


def min_p(logits: Tensor, share: float) -> Tensor:
    """Return logits (b, v) without tokens less likely than `share` of the likeliest.

    Min-p sampling (arXiv 2407.01082): keeps p ≥ share · max p.
    """
    if share <= 0:
        return logits
    peak = logits.amax(-1, keepdim=True)
    return logits.masked_fill((logits - peak).exp() < share, -torch.inf)


def filter_logits(logits: Tensor, options: Decoding, seen: Tensor | None = None) -> Tensor:
    """Return logits (b, v), float32, after all controls; their softmax is what is sampled from.

    seen: bool (b, v), tokens of prompt and output; needed for a repetition penalty. Temperature 0
    leaves the likeliest token alone.
    """
    logits = logits.float()
    if seen is not None and options.repetition_penalty != 1:
        logits = penalize(logits, seen, options.repetition_penalty)
    if options.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    if options.temperature != 1:
        logits = logits / options.temperature
    return min_p(top_p(top_k(logits, options.top_k), options.top_p), options.min_p)


def choose(
    logits: Tensor, uniform: Tensor, options: Decoding, seen: Tensor | None = None
) -> Tensor:
    """Return one token per row, int64 (b,), from logits (b, v) and uniforms (b,) in [0, 1).

    The token is the first whose cumulative probability exceeds the uniform: a token that the
    controls removed is never drawn.
    """
    if options.temperature == 0:
        if seen is not None and options.repetition_penalty != 1:
            logits = penalize(logits.float(), seen, options.repetition_penalty)
        return logits.argmax(-1)
    cdf = filter_logits(logits, options, seen).double().softmax(-1).cumsum(-1)
    level = uniform.double().unsqueeze(-1) * cdf[..., -1:]
    return torch.searchsorted(cdf, level, right=True).squeeze(-1)


def prompt_lists(prompts: Sequence[Sequence[int]] | Tensor, vocabulary: int) -> list[list[int]]:
    """Return prompts as lists of ints; raises ConfigError for a token outside the vocabulary."""
    rows = prompts.tolist() if isinstance(prompts, Tensor) else [list(row) for row in prompts]
    for row in rows:
        for token in row:
            if not 0 <= token < vocabulary:
                raise ConfigError(
                    f"prompt token {token} is outside [0, {vocabulary - 1}]: encode the prompt "
                    "with the codec of this run"
                )
    return rows


def autoregress(
    feed: Feed,
    prompts: Sequence[Sequence[int]],
    noise: Noise,
    options: Decoding,
    *,
    length: int,
    stop: Callable[[int, int], bool] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt by up to `length` tokens; returns the new tokens of each row.

    Rows advance together from the shortest prompt on; while a longer prompt lasts, its own tokens
    are fed. The token at position n of a row uses the n-th uniform of the row's stream, so a row
    is the same in any batch. on_token(row, token) hears of each new token at once; a row ends
    after the token for which stop(row, token) returns True.
    """
    device = noise.device
    rows = len(prompts)
    if rows == 0 or length == 0:
        return [[] for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    shortest, end = min(lengths), max(lengths) + length
    text = torch.zeros(rows, end, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        text[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
    text = text.to(device)
    prompted = torch.tensor(lengths, device=device)
    ends = [n + length for n in lengths]

    new = text[:, :shortest]
    seen: Tensor | None = None
    uniforms = torch.empty(0)
    drawn = -1
    for n in range(shortest, end):
        while drawn < n // _BLOCK:
            uniforms = noise.rand(_BLOCK)
            drawn += 1
        logits = feed(new)
        if options.repetition_penalty != 1:
            if seen is None:
                seen = torch.zeros_like(logits, dtype=torch.bool)
            seen.scatter_(1, new, True)
        token = choose(logits, uniforms[:, n % _BLOCK], options, seen)
        if n < max(lengths):
            token = torch.where(prompted > n, text[:, n], token)
        text[:, n] = token
        new = token.unsqueeze(1)
        if stop is None and on_token is None:
            continue
        for row, value in enumerate(token.tolist()):
            if lengths[row] <= n < ends[row]:
                if on_token is not None:
                    on_token(row, value)
                if stop is not None and stop(row, value):
                    ends[row] = n + 1
        if n + 1 >= max(ends):
            break
    result = text.tolist()
    return [result[row][lengths[row] : ends[row]] for row in range(rows)]
