"""A character transformer of nanoGPT's size (6 layers of 384): training and generation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F

from poiesis.data.codecs import TextCodec
from poiesis.data.dataset import DataSet, TextSplit
from poiesis.models.autoregressive.transformer import Transformer
from poiesis.models.base import autocast, low_weights
from poiesis.models.trained import build
from poiesis.rng import Noise
from workloads.common import OURS, Gate, Side, Workload, engine_step, low_precision

__all__ = ["WORKLOADS"]

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, DROPOUT, VOCABULARY = 6, 6, 384, 256, 16, 0.2, 65
NEW = CONTEXT - 1


def _data() -> DataSet:
    codec = TextCodec("characters", "".join(map(chr, range(48, 48 + VOCABULARY))))
    source = torch.Generator().manual_seed(0)
    split = TextSplit(torch.randint(0, VOCABULARY, (200_000,), generator=source))
    return DataSet(
        name="random",
        variant="200,000 random characters",
        spec=codec.spec,
        condition=None,
        codec=codec,
        splits={"train": split, "validation": split},
    )


def _model(device: torch.device) -> Any:
    """Return our model with weights that both sides of a generation get."""
    config = Transformer.Config(
        recipe="nanogpt",
        layers=LAYERS,
        heads=HEADS,
        width=WIDTH,
        context=CONTEXT,
        dropout=DROPOUT,
        batch_size=BATCH,
        learning_rate=1e-3,
    )
    torch.manual_seed(0)
    return build(Transformer, config, _data().spec, None, device=device)


def ours_train(device: torch.device) -> Callable[[], Any]:
    """Our engine with the `nanogpt` recipe: AdamW, gradient clipping, dropout."""
    return engine_step(_model(device), _data())


def ours_generate(
    device: torch.device, *, batch: int, precision: Literal["fp32", "bf16"] = "fp32"
) -> Callable[[], Any]:
    """Our `generate`, greedy."""
    model = _model(device)
    options = Transformer.Sampling(temperature=0, length=NEW)
    prompts = [[row % VOCABULARY] for row in range(batch)]

    def run() -> list[list[int]]:
        with autocast(device, precision), low_weights(model, precision):
            return model.generate(prompts, Noise(0, range(batch), device=device), options)

    return run


def _peer(device: torch.device) -> Any:
    """GPT-2 of transformers with our weights; its biases, which we lack, are zero."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=DROPOUT,
        embd_pdrop=DROPOUT,
        attn_pdrop=DROPOUT,
        activation_function="gelu",
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    peer = GPT2LMHeadModel(config)
    ours = _model(device)
    peer.to(device)
    body = peer.transformer
    with torch.no_grad():
        body.wte.weight.copy_(ours.tokens.weight)
        body.wpe.weight.copy_(ours.positions[0])
        for theirs, block in zip(body.h, ours.blocks, strict=True):
            pairs = (
                (theirs.attn.c_attn, block.qkv),
                (theirs.attn.c_proj, block.project),
                (theirs.mlp.c_fc, block.up),
                (theirs.mlp.c_proj, block.down),
            )
            for target, source in pairs:
                target.weight.copy_(source.weight.T)
    return peer


def peer_train(device: torch.device, *, bf16: bool) -> Callable[[], Any]:
    """A plain loop around transformers' GPT-2 with the same optimizer, clipping and dropout."""
    model = _peer(device).train()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    tokens = torch.randint(0, VOCABULARY, (BATCH, CONTEXT + 1), device=device)

    def step() -> None:
        with low_precision(device, bf16):
            logits = model(tokens[:, :-1], use_cache=False).logits
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()

    return step


def peer_generate(device: torch.device, *, batch: int, bf16: bool) -> Callable[[], Any]:
    """transformers' `generate` with its cache, greedy."""
    model = _peer(device).eval().to(torch.bfloat16 if bf16 else torch.float32)
    prompt = torch.arange(batch, device=device).unsqueeze(1) % VOCABULARY
    mask = torch.ones_like(prompt)

    @torch.no_grad()
    def run() -> list[list[int]]:
        text = model.generate(
            prompt,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
            use_cache=True,
        )
        return text[:, 1:].tolist()

    return run


def same_text(results: dict[str, Any]) -> dict[str, Any]:
    """Compare the greedy texts in float32, token by token."""
    ours, theirs = results[OURS], results["transformers fp32"]
    pairs = [a == b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return {"agree": all(pairs), "equal_tokens": sum(pairs), "tokens": len(pairs)}


def _generation(batch: int, factor: float) -> Workload:
    modules = ("transformers.models.gpt2.modeling_gpt2",)

    def side(bf16: bool) -> Side:
        build = functools.partial(peer_generate, batch=batch, bf16=bf16)
        return Side(build=build, modules=modules, bf16=bf16)

    return Workload(
        name=f"gpt-generate-{batch}",
        title=f"its generation, batch {batch}, {NEW} tokens after a prompt of one, greedy",
        unit="tok/s",
        items=batch * NEW,
        sides={
            OURS: Side(build=functools.partial(ours_generate, batch=batch)),
            f"{OURS} bf16": Side(
                build=functools.partial(ours_generate, batch=batch, precision="bf16"), bf16=True
            ),
            "transformers fp32": side(False),
            "transformers bf16": side(True),
        },
        gates=[Gate(against="best", factor=factor)],
        check=same_text,
    )


_MODULES = ("transformers.models.gpt2.modeling_gpt2",)

WORKLOADS = [
    Workload(
        name="gpt-train",
        title="transformer 6x384, context 256, batch 16, dropout 0.2, training",
        unit="tok/s",
        items=BATCH * CONTEXT,
        sides={
            OURS: Side(build=ours_train),
            "transformers fp32": Side(
                build=functools.partial(peer_train, bf16=False), modules=_MODULES
            ),
            "transformers bf16": Side(
                build=functools.partial(peer_train, bf16=True), modules=_MODULES, bf16=True
            ),
        },
        gates=[
            Gate(against="transformers fp32", factor=2.5),
            Gate(against="transformers bf16", factor=1.5),
        ],
        memory=3,
    ),
    _generation(1, 1.25),
    _generation(64, 1.7),
]
