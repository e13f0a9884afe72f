import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from poiesis import registry
from poiesis.config import field_docs
from poiesis.errors import ConfigError, SpecError
from poiesis.models import capabilities
from poiesis.models.autoregressive.transformer import Transformer
from poiesis.models.base import Batch
from poiesis.nn.attention import rms_norm, rotary_table, rotate
from poiesis.rng import Draws, Noise
from poiesis.spec import Classes, Grid, Tokens, Vector

TEXT = Tokens(vocabulary=11, length=0, stream=True)
SHAKESPEARE = Tokens(vocabulary=65, length=0, stream=True)
IMAGE = Grid(channels=2, size=(3, 4), levels=5)
SMALL = {"layers": 2, "heads": 2, "width": 16}
RECIPES = ("modern", "nanogpt")


def build(spec, condition=None, seed=0, **options):
    config = Transformer.Config(**{**SMALL, **options})
    torch.manual_seed(seed)
    model = Transformer(config, Transformer.view(config, spec), condition).eval()
    # Zero projections and heads would make every test below pass: give all weights a value.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def batch(x, condition=None):
    draws = Draws((0,), total=len(x))
    return Batch(x=x, condition=condition, index=torch.arange(len(x)), draws=draws, size=len(x))


def test_views():
    config = Transformer.Config(context=32)
    assert Transformer.view(config, TEXT) == Tokens(vocabulary=11, length=32, stream=True)
    assert Transformer.view(config, IMAGE) == Tokens(vocabulary=5, length=24)
    with pytest.raises(SpecError, match="vector"):
        Transformer.view(config, Vector(features=3))
    with pytest.raises(SpecError, match="smaller images"):
        Transformer.view(config, Grid(channels=3, size=(128, 128)))
    with pytest.raises(SpecError, match="grid"):
        Transformer.view(Transformer.Config(grid=(3, 3)), IMAGE)


@pytest.mark.parametrize(
    "wrong",
    [{"layers": 0}, {"width": 30, "heads": 4}, {"width": 36, "heads": 12}, {"dropout": 1.0}],
)
def test_config_bounds(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Transformer.Config(**wrong)


def test_every_option_is_documented():
    for cls in (Transformer.Config, Transformer.Sampling):
        assert set(field_docs(cls)) >= set(cls.__dataclass_fields__)
    assert registry.model_class("transformer") is Transformer
    assert capabilities.of(Transformer) == ["log_prob", "conditionals"]


# -- nanogpt is nanoGPT ------------------------------------------------------------------------


def test_nanogpt_counts_the_parameters_that_nanogpt_prints():
    config = Transformer.preset("nanogpt_gpu", TEXT)
    model = Transformer(
        config, Transformer.view(config, Tokens(vocabulary=65, length=0, stream=True))
    )
    count = sum(p.numel() for p in model.parameters())
    # nanoGPT prints "number of parameters: 10.65M" without its 256 x 384 positions.
    assert count - 256 * 384 == 12 * 6 * 384**2 + 65 * 384 + 13 * 384 == 10_646_784


def test_nanogpt_initialisation():
    config = Transformer.preset("nanogpt", TEXT)
    torch.manual_seed(0)
    model = Transformer(
        config, Transformer.view(config, Tokens(vocabulary=65, length=0, stream=True))
    )
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == 1).all()
            continue
        residual = name.endswith(("project.weight", "down.weight"))
        std = 0.02 / math.sqrt(8) if residual else 0.02
        # Four standard errors of a standard deviation.
        assert p.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * p.numel())), name
    assert model.head.weight is model.tokens.weight
    x = torch.randint(65, (4, 65))
    assert model.nll(x, None).mean().item() == pytest.approx(math.log(65), abs=0.05)


def test_nanogpt_optimizer():
    model = build(TEXT, recipe="nanogpt", learning_rate=1e-3)
    (adamw,) = model.optimizers().values()
    assert (adamw.kind, adamw.lr, adamw.betas) == ("adamw", 1e-3, (0.9, 0.99))
    assert (adamw.weight_decay, adamw.decay_matrices_only, adamw.clip) == (0.1, True, 1.0)
    schedule = adamw.schedule
    assert (schedule.kind, schedule.warmup, schedule.final) == ("cosine", 100, 0.1)


def test_modern_optimizers_share_the_parameters_between_them():
    config = Transformer.preset("default", IMAGE)
    model = Transformer(config, Transformer.view(config, IMAGE))
    muon, adamw = model.optimizers()["muon"], model.optimizers()["adamw"]
    assert muon.select is not None and adamw.select is not None
    named = dict(model.named_parameters())
    hidden = {n for n, p in named.items() if muon.select(n, p)}
    rest = {n for n, p in named.items() if adamw.select(n, p)}
    assert hidden | rest == set(named) and not hidden & rest
    assert all(named[n].ndim == 2 and "blocks" in n for n in hidden)
    assert len(hidden) == 4 * config.layers
    assert {"tokens.weight", "head.weight", "start.weight"} <= rest


def test_modern_starts_uniform():
    config = Transformer.preset("default", TEXT)
    model = Transformer(config, Transformer.view(config, TEXT))
    nll = model.nll(torch.randint(11, (2, 65)), None)
    torch.testing.assert_close(nll, torch.full_like(nll, math.log(11)))


# -- layers ------------------------------------------------------------------------------------


def test_rms_norm_is_torchs():
    x = torch.randn(3, 5, 16, requires_grad=True)
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (16,)), rtol=1e-5, atol=1e-5)
    assert (rms_norm(torch.zeros(2, 4)) == 0).all()


def test_rotary_scores_depend_on_distance_alone():
    table = rotary_table(40, 8)
    q, k = torch.randn(2, 1, 1, 1, 8)
    turned_q = rotate(q.expand(1, 40, 1, 8), table)[0, :, 0]
    turned_k = rotate(k.expand(1, 40, 1, 8), table)[0, :, 0]
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[5, 2], scores[35, 32], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores.diagonal(), (q * k).sum().expand(40), rtol=1e-4, atol=1e-4)
    assert (scores[5, 2] - scores[5, 3]).abs() > 1e-3


# -- likelihood --------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("spec", [TEXT, IMAGE], ids=["text", "image"])
def test_no_logit_sees_its_own_token_or_a_later_one(recipe, spec):
    model = build(spec, recipe=recipe, context=12)
    length = model.spec.shape[0]
    x = torch.randint(model.spec.vocabulary, (1, length))
    logits = model(x)
    for at in range(length):
        other = x.clone()
        other[0, at] = (x[0, at] + 1) % model.spec.vocabulary
        changed = (model(other) - logits).abs().amax((0, 2)) > 1e-6
        # Token `at` is predicted by logit at - 1 of a stream, by logit `at` of a whole sequence.
        first = at if model.spec.stream else at + 1
        assert not changed[:first].any()
        assert changed[first:].all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_probabilities_of_all_sequences_sum_to_one(recipe):
    whole = build(Tokens(vocabulary=3, length=4), recipe=recipe)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    total = whole.log_prob(every).nats.exp().sum().item()
    assert total == pytest.approx(1, abs=1e-5)
    stream = build(Tokens(vocabulary=3, length=0, stream=True), recipe=recipe, context=4)
    after = torch.cat((torch.ones(len(every), 1, dtype=torch.long), every), dim=1)
    result = stream.log_prob(after)
    assert result.nats.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert (result.kind, result.measure, result.dims) == ("exact", "discrete", 4)
    assert "first token" in result.detail


def test_log_prob_loss_and_conditionals_agree():
    model = build(IMAGE)
    x = torch.randint(5, (3, 24))
    table = model.conditionals(x)
    assert table.shape == (3, 24, 5)
    torch.testing.assert_close(table.exp().sum(-1), torch.ones(3, 24))
    picked = table.gather(-1, x.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(model.log_prob(x).nats.float(), picked.sum(1))
    loss, logs = model.loss(batch(x), 0)
    torch.testing.assert_close(loss, -picked.mean(1))
    assert loss.shape == (3,) and loss.dtype == torch.float32 and set(logs) == {"nll"}
    torch.testing.assert_close(model.validate(batch(x))["nll"], loss)


def test_class_condition_changes_the_image():
    classes = Classes(count=3)
    model = build(IMAGE, classes, conditional=True)
    x = torch.randint(5, (1, 24)).expand(3, -1)
    nats = model.log_prob(x, torch.arange(3)).nats
    assert nats.unique().numel() == 3
    assert build(IMAGE, classes).condition is None
    with pytest.raises(SpecError, match="no classes"):
        build(IMAGE, None, conditional=True)
    with pytest.raises(SpecError, match="no classes"):
        build(TEXT, classes, conditional=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_bf16_autocast(recipe):
    model = build(TEXT, recipe=recipe).train()
    x = torch.randint(11, (2, 65))
    exact = model.loss(batch(x), 0)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model.loss(batch(x), 0)
    loss.mean().backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    sampled = model.sample(2, precision="bf16")
    assert sampled.shape == (2, 65)


# -- sampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_greedy_with_cache_without_and_by_plain_forward(recipe):
    model = build(TEXT, recipe=recipe, context=12)
    options = Transformer.Sampling(temperature=0, length=40)
    prompts = [[1, 2, 3], [4, 5, 6]]
    cached = model.generate(prompts, Noise(0, range(2)), options)
    assert model.generate(prompts, Noise(0, range(2)), options, cached=False) == cached
    # Within the context the answer is the argmax of the training-time forward pass.
    text = list(prompts[0])
    for _ in range(9):
        padded = torch.tensor([text + [0] * (13 - len(text))])
        text.append(int(model(padded)[0, len(text) - 1].argmax()))
    assert text[3:] == cached[0][:9]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("spec", [TEXT, IMAGE], ids=["text", "image"])
def test_samples_do_not_depend_on_batch_or_cache(recipe, spec):
    model = build(spec, recipe=recipe, context=12)
    together = model.sample(5, seed=7)
    assert together.shape == (5, *model.spec.shape)
    assert torch.equal(model.sample(5, seed=7, batch_size=2), together)
    assert torch.equal(model.sample(2, seed=7, first=3), together[3:])
    assert not torch.equal(model.sample(5, seed=8), together)
    assert together.unique(dim=0).size(0) == 5


def test_prompts_of_any_lengths_side_by_side():
    model = build(TEXT, context=12)
    options = Transformer.Sampling(length=30, top_p=0.9, repetition_penalty=1.2)
    prompts = [[1], [2, 3, 4, 5], list(range(11)) * 3]
    together = model.generate(prompts, Noise(1, range(3)), options)
    for row, prompt in enumerate(prompts):
        for cached in (True, False):
            alone = model.generate([prompt], Noise(1, [row]), options, cached=cached)
            assert alone[0] == together[row]


def test_streamed_tokens_are_the_returned_ones():
    model = build(TEXT)
    options = Transformer.Sampling(length=20)
    heard = []
    streamed = model.generate(
        [[1, 2]], Noise(0, [0]), options, on_token=lambda row, token: heard.append(token)
    )
    assert heard == streamed[0] == model.generate([[1, 2]], Noise(0, [0]), options)[0]


def test_image_continues_a_given_beginning():
    model = build(IMAGE)
    upper = torch.randint(5, (2, 12))
    rows = model.generate(upper, Noise(0, range(2)), Transformer.Sampling())
    assert [len(row) for row in rows] == [12, 12]
    with pytest.raises(ConfigError, match="12 tokens left"):
        model.generate(upper, Noise(0, range(2)), Transformer.Sampling(length=13))


def test_generation_refuses_what_does_not_fit():
    model = build(TEXT)
    with pytest.raises(ConfigError, match="empty"):
        model.generate([[]], Noise(0, [0]), Transformer.Sampling())
    with pytest.raises(ConfigError, match="2 prompts for 1"):
        model.generate([[1], [2]], Noise(0, [0]), Transformer.Sampling())
    with pytest.raises(ConfigError, match="prompt token 11"):
        model.generate([[11]], Noise(0, [0]), Transformer.Sampling())
    with pytest.raises(ConfigError, match="length"):
        build(IMAGE).sample(1, options=Transformer.Sampling(length=5))


def test_texts_begin_by_the_frequencies_of_the_data():
    model = build(TEXT)
    x = torch.zeros(4, 65, dtype=torch.long)
    x[:, ::5] = 3  # 13 of 65 tokens
    model.prepare(batch(x))
    first = model.sample(400, options=Transformer.Sampling(length=1), batch_size=400)
    assert first.shape == (400, 1)
    assert (first == 3).float().mean().item() == pytest.approx(0.2, abs=0.06)
    assert ((first == 0) | (first == 3)).all()


def test_sampled_images_follow_the_exact_probabilities():
    model = build(Tokens(vocabulary=2, length=3), width=8)
    every = torch.tensor(list(itertools.product(range(2), repeat=3)))
    exact = model.log_prob(every).nats.exp()
    drawn = model.sample(2000, batch_size=2000) @ torch.tensor([4, 2, 1])
    share = torch.bincount(drawn, minlength=8).double() / 2000
    torch.testing.assert_close(share, exact, atol=0.04, rtol=0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_learns_a_rule_that_needs_attention(recipe):
    # Each text repeats its first six random tokens: only attending six back predicts the rest.
    config = Transformer.Config(recipe=recipe, context=11, width=32, layers=2)
    torch.manual_seed(0)
    model = Transformer(config, Transformer.view(config, TEXT))
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        x = torch.randint(11, (32, 6)).repeat(1, 2)
        loss, _ = model.loss(batch(x), 0)
        adam.zero_grad()
        loss.mean().backward()
        adam.step()
    x = torch.randint(11, (64, 6)).repeat(1, 2)
    assert model.eval().nll(x, None)[:, 5:].mean().item() < 0.4
    prompt = [3, 1, 4, 1, 5, 9]
    rows = model.generate([prompt], Noise(0, [0]), Transformer.Sampling(temperature=0, length=6))
    assert rows == [prompt]
