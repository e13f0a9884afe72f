"""VQ-VAE: the codebook against closed forms and a peer, straight-through gradients, two stages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from poiesis.data import open_data
from poiesis.errors import ConfigError, SpecError
from poiesis.models.autoencoders.codebook import Codebook, perplexity
from poiesis.models.autoencoders.vq_vae import VQVAE
from poiesis.models.base import Batch
from poiesis.models.trained import build
from poiesis.rng import Draws
from poiesis.spec import Classes, Grid, Tokens, Vector
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine

TINY: dict[str, Any] = {
    "widths": (8,),
    "blocks": 1,
    "codes": 16,
    "code_dim": 4,
    "batch_size": 16,
    "prior_layers": 1,
    "prior_width": 16,
    "prior_heads": 2,
    "prior_batch_size": 8,
}


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


def model_of(spec: Grid | None = None, classes: Classes | None = None, **options: Any) -> VQVAE:
    config = VQVAE.Config(**{**TINY, **options})
    torch.manual_seed(0)
    return build(VQVAE, config, spec or Grid(channels=1, size=(8, 8), levels=17), classes)


def engine_of(digits: Any, model: VQVAE, **train: Any) -> Engine:
    few = {"grids": 0, "validations": 0, "checkpoints": 0, "threads": 1}
    return Engine(model, digits, TrainConfig(**{**few, **train}), quiet=True)


def batch_of(x: torch.Tensor, seed: int = 0) -> Batch:
    draws = Draws(("test", seed), total=len(x))
    return Batch(x=x, condition=None, index=torch.arange(len(x)), draws=draws, size=len(x))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step(codebook: Codebook, z_bnd: torch.Tensor, parts: int = 1, seed: int = 1) -> None:
    """Let a codebook see a batch in so many micro-batches, and move."""
    at = torch.rand(len(z_bnd), generator=torch.Generator().manual_seed(seed))
    for z, level in zip(z_bnd.chunk(parts), at.chunk(parts), strict=True):
        codes = codebook.nearest(z.flatten(0, 1)).view(z.shape[:2])
        codebook.note(z, codes, level)
    codebook.update()


# -- the codebook --------------------------------------------------------------------------------


def test_moving_averages_are_those_of_the_papers_appendix():
    codebook = Codebook(3, 2, decay=0.9, revive=0.0)
    codebook.vectors.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]]))
    codebook.sums.copy_(codebook.vectors)
    counts = torch.ones(3, dtype=torch.float64)
    sums = codebook.vectors.double()
    for z in ([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0]], [[-1.0, 0.5], [5.0, 0.0], [4.0, 2.0]]):
        rows = torch.tensor(z)
        step(codebook, rows[None])
        members = [[0, 1], [2], []] if z[0][0] == 1 else [[0], [1, 2], []]
        for i, of in enumerate(members):
            counts[i] = 0.9 * counts[i] + 0.1 * len(of)
            sums[i] = 0.9 * sums[i] + 0.1 * rows[of].double().sum(0)
        smoothed = (counts + 1e-5) / (counts.sum() + 3e-5) * counts.sum()
        wanted = (sums / smoothed[:, None]).float()
        torch.testing.assert_close(codebook.vectors, wanted)


def test_moving_averages_are_those_of_vector_quantize_pytorch():
    pytest.importorskip("vector_quantize_pytorch")
    from vector_quantize_pytorch import VectorQuantize  # pyright: ignore

    torch.manual_seed(0)
    peer = VectorQuantize(
        dim=8, codebook_size=32, decay=0.97, eps=1e-5, threshold_ema_dead_code=0
    ).train()
    codebook = Codebook(32, 8, decay=0.97, revive=0.0)
    start = peer.state_dict()["_codebook.embed"][0].clone()
    codebook.vectors.copy_(start)
    codebook.sums.copy_(start)
    for seed in range(20):
        z = normal(16, 12, 8, seed=seed) * 0.5 + 0.1
        codes = codebook.nearest(z.flatten(0, 1)).view(16, 12)
        _, indices, _ = peer(z)
        assert torch.equal(codes, indices)
        step(codebook, z)
        state = peer.state_dict()
        torch.testing.assert_close(codebook.vectors, state["_codebook.embed"][0])
        torch.testing.assert_close(codebook.counts, state["_codebook.cluster_size"][0])
    assert float((codebook.vectors - start).norm(dim=1).max()) > 0.3


def test_a_warm_codebook_keeps_up_with_a_young_encoder():
    z = normal(20, 4, 3)
    grown = {}
    for warm in (False, True):
        codebook = Codebook(4, 3, decay=0.99, revive=0.0, warm=warm)
        codebook.start(z.flatten(0, 1))
        before = codebook.vectors.norm()
        for _ in range(5):
            step(codebook, 2 * z)  # outputs grow fast in the first steps
        grown[warm] = float(codebook.vectors.norm() / before)
    assert grown[False] < 1.1
    assert grown[True] > 1.7
    for t, decay in ((0, 0.1), (90, 0.91), (5000, 0.99)):
        codebook.updates.fill_(t)
        codebook.counts.fill_(0.0)
        step(codebook, z)
        assert float(codebook.counts.sum()) == pytest.approx((1 - decay) * 80, rel=1e-4)


def test_the_nearest_code_is_that_of_the_smallest_distance():
    codebook = Codebook(20, 5, decay=0.99, revive=0.0)
    codebook.vectors.copy_(normal(20, 5))
    z = normal(300, 5, seed=1)
    assert torch.equal(codebook.nearest(z), torch.cdist(z, codebook.vectors).argmin(1))
    assert torch.equal(codebook.nearest(codebook(torch.arange(20))), torch.arange(20))


def test_perplexity_counts_the_codes_in_use():
    assert float(perplexity(torch.full((64,), 3.0))) == pytest.approx(64, rel=1e-5)
    assert float(perplexity(torch.eye(64)[5])) == pytest.approx(1)
    half = torch.cat((torch.ones(10), torch.zeros(54)))
    assert float(perplexity(half)) == pytest.approx(10, rel=1e-5)


@pytest.mark.parametrize("gradient", [False, True])
def test_unused_codes_move_to_vectors_of_the_batch(gradient):
    codebook = Codebook(6, 3, gradient=gradient, decay=0.5, revive=0.5)
    with torch.no_grad():
        codebook.vectors.copy_(torch.full((6, 3), 1e3))
        codebook.vectors[0] = 0.0
        codebook.vectors[1] = 1.0
    z = 0.1 * normal(8, 5, 3) + (torch.arange(40).view(8, 5, 1) % 2)
    step(codebook, z)
    # The average use of four, 0.5 · 1 + 0.5 · 0, is below half of the even share 40 / 6.
    assert int(codebook.revived) == 4
    rows = z.flatten(0, 1)
    for vector in codebook.vectors.detach()[2:]:
        assert float((rows - vector).norm(dim=1).min()) == 0
    assert len(codebook.vectors.unique(dim=0)) == 6
    torch.testing.assert_close(codebook.counts[2:], torch.full((4,), 40 / 6))
    step(codebook, z)
    assert int(codebook.revived) == 0


def test_more_unused_codes_than_samples_wait_for_the_next_step():
    codebook = Codebook(9, 3, decay=0.5, revive=0.9)
    codebook.vectors.fill_(1e3)
    codebook.vectors[0] = 0.0
    revived = []
    for seed in range(3):
        step(codebook, normal(3, 40, 3, seed=seed))
        revived.append(int(codebook.revived))
    assert revived[0] == 3 and sum(revived) >= 8
    assert bool((codebook.vectors.abs() < 100).all())


def test_micro_batches_move_the_codebook_as_the_whole_batch():
    whole, parts = (Codebook(12, 3, decay=0.9, revive=0.5) for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    for seed in range(4):
        z = normal(8, 5, 3, seed=seed)
        step(whole, z)
        step(parts, z, parts=4)
        torch.testing.assert_close(whole.state_dict(), parts.state_dict())
    assert len(whole.vectors.unique(dim=0)) == 12


def test_vectors_that_are_not_finite_teach_nothing():
    codebook = Codebook(4, 3, decay=0.9, revive=0.5)
    before = copy.deepcopy(codebook.state_dict())
    step(codebook, normal(2, 3, 3) * torch.inf)
    for name, value in codebook.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_start_finds_clusters_and_copes_with_few_vectors():
    centres = 10 * normal(8, 4)
    z = centres.repeat(50, 1) + 0.01 * normal(400, 4, seed=1)
    first, second = (Codebook(8, 4, decay=0.99, revive=0.1) for _ in range(2))
    first.start(z)
    second.start(z)
    assert torch.equal(first.vectors, second.vectors)
    assert float(torch.cdist(centres, first.vectors).min(1).values.max()) < 0.01
    torch.testing.assert_close(first.counts, torch.full((8,), 50.0))
    # Averages that stay where they are while the vectors do.
    before = first.vectors.clone()
    step(first, z.view(40, 10, 4))
    torch.testing.assert_close(first.vectors, before, atol=1e-3, rtol=1e-4)
    few = Codebook(50, 4, decay=0.99, revive=0.1)
    few.start(z[:5])
    assert bool(torch.isfinite(few.vectors).all())
    assert float(torch.cdist(z[:5], few.vectors).min(1).values.max()) < 1e-2


# -- the loss ------------------------------------------------------------------------------------


def test_gradients_pass_straight_through_the_codes(monkeypatch):
    model = model_of(commitment=0.0)
    model.prepare(batch_of(normal(16, 1, 8, 8).clamp(-1, 1)))
    x = normal(6, 1, 8, 8, seed=1).clamp(-1, 1)
    z = model.outputs(x).detach().requires_grad_()
    monkeypatch.setattr(model, "outputs", lambda x: z)
    values, logs = model.loss(batch_of(x), 0)
    values.sum().backward()
    q = model.codebook(model.codebook.nearest(z.detach().flatten(0, 1)).view(6, -1))
    assert float((q - z.detach()).abs().max()) > 0  # else there is nothing to pass
    q = q.requires_grad_()
    (model.error(x, q) / model.variance).sum().backward()
    torch.testing.assert_close(z.grad, q.grad)
    torch.testing.assert_close(values, logs["distance"])


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_commitment_moves_the_encoder_and_the_dictionary_loss_the_codes(monkeypatch, kind):
    model = model_of(commitment=0.5, codebook=kind)
    x = normal(6, 1, 8, 8).clamp(-1, 1)
    z = model.outputs(x).detach().requires_grad_()
    monkeypatch.setattr(model, "outputs", lambda x: z)
    # What the decoder makes of it is left out: the two other terms alone.
    monkeypatch.setattr(model, "error", lambda x, q: torch.zeros(len(x)))
    values, _ = model.loss(batch_of(x), 0)
    values.sum().backward()
    codes = model.codebook.nearest(z.detach().flatten(0, 1))
    apart = (z.detach().flatten(0, 1) - model.codebook(codes).detach()) * 2 / z[0].numel()
    torch.testing.assert_close(z.grad, 0.5 * apart.view_as(z))
    if kind == "gradient":
        wanted = torch.zeros_like(model.codebook.vectors).index_add_(0, codes, -apart)
        torch.testing.assert_close(model.codebook.vectors.grad, wanted)
    else:
        assert not list(model.codebook.parameters())


def test_a_look_without_gradients_leaves_no_trace():
    model = model_of()
    x = normal(6, 1, 8, 8).clamp(-1, 1)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model.loss(batch_of(x), 0)
    model.validate(batch_of(x))
    model.after_step(model.stages()[0].phases[0], 0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


# -- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_accumulation_gives_the_same_codebook(digits, kind):
    states = []
    for accumulate in (1, 2):
        model = model_of(codebook=kind)
        engine = engine_of(digits, model, steps=4, accumulate=accumulate, precision="fp32")
        engine.prepare()
        for _ in range(4):
            engine.run_step()
            engine.step += 1
        states.append(model.codebook.state_dict())
    torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)


def test_each_stage_trains_its_own_part(digits):
    model = model_of(prior_dropout=0.3)
    engine = engine_of(digits, model, steps=8)
    seen: list[tuple[str, dict[str, torch.Tensor]]] = []
    original = engine.run_step

    def run_step() -> Any:
        seen.append((engine.stages[engine.stage_index].name, copy.deepcopy(model.state_dict())))
        assert model.prior.training and model.prior.blocks[0].training
        return original()

    engine.run_step = run_step
    engine.fit()
    assert [stage for stage, _ in seen] == ["codes"] * 4 + ["prior"] * 4
    start, between, end = seen[0][1], seen[4][1], model.state_dict()

    def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
        return {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])}

    assert moved(start, between) == {"encoder", "decoder", "codebook"}
    assert moved(between, end) == {"prior"}
    optimizers = {
        name: {n for g in o.param_groups for n in g["param_names"]}
        for name, o in engine.optimizers.items()
    }
    assert set(optimizers) == {"autoencoder", "prior-muon", "prior-adamw"}
    assert all(".blocks." in name for name in optimizers["prior-muon"])
    named = [name for names in optimizers.values() for name in names]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())


def test_the_prior_learns_the_codes(digits):
    model = model_of(prior_share=0.9, prior_dropout=0.0)
    engine = engine_of(digits, model, steps=300)
    engine.fit()
    watched = engine.validate()
    # Codes of equal chance would cost log 16; those of digits have structure.
    assert set(watched) == {"prior_nll"}
    assert watched["prior_nll"] < 0.8 * torch.tensor(16.0).log()
    x, _, _ = next(engine.loader(engine.stages[0], "validation").in_order(8))
    values = model.validate(batch_of(x))
    assert set(values) == {"distance", "mse"}
    torch.testing.assert_close(values["mse"], values["distance"] * model.variance)


@pytest.mark.parametrize("at", [2, 6])
def test_resume_in_either_stage(digits, at):
    whole = engine_of(digits, model_of(prior_dropout=0.3), steps=8)
    kept: dict[str, Any] = {}
    original = whole.run_step

    def run_step() -> Any:
        if whole.step == at:
            kept.update(copy.deepcopy(whole.state_files()))
        return original()

    whole.run_step = run_step
    whole.fit()
    again = engine_of(digits, model_of(prior_dropout=0.3), steps=8)
    again.schedule = whole.schedule
    again.load_state_files(kept)
    again.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


# -- use -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (28, 28)])
def test_codes_and_images(size):
    model = model_of(Grid(channels=3, size=size), widths=(8, 8)).eval()
    h, w = -(-size[0] // 4), -(-size[1] // 4)
    x = normal(5, 3, *size).clamp(-1, 1)
    model.prepare(batch_of(x))
    latent = model.encode(x)
    assert latent["codes"].shape == (5, h, w) and latent["codes"].dtype == torch.int64
    assert latent["z"].shape == (5, 4, h, w)
    assert model.prior.spec == Tokens(vocabulary=16, length=h * w)
    image = model.reconstruct(x)
    assert image.shape == x.shape and float(image.abs().max()) <= 1
    for form in (latent["codes"], latent["z"], latent):
        assert torch.equal(model.decode(form), image)
    codes = model.codebook.nearest(latent["z"].movedim(1, 3).flatten(0, 2))
    assert torch.equal(codes.view(5, h, w), latent["codes"])


def test_samples_are_decoded_codes_of_the_prior(monkeypatch):
    model = model_of(classes=Classes(count=3), conditional=True)
    codes = torch.randint(16, (4, 16), generator=torch.Generator().manual_seed(0))
    asked = []

    def draw(noise: Any, condition: Any, options: Any) -> torch.Tensor:
        asked.append((condition.tolist(), options.temperature, options.top_k))
        return codes

    monkeypatch.setattr(model.prior, "draw", draw)
    options = VQVAE.Sampling(temperature=0.5, top_k=3)
    drawn = model.sample(4, options=options, condition=torch.tensor([0, 1, 2, 0]))
    assert asked == [([0, 1, 2, 0], 0.5, 3)]
    assert torch.equal(drawn, model.decode(codes.view(4, 4, 4)))


def test_wrong_wishes_are_refused():
    model = model_of()
    with pytest.raises(ConfigError, match=r"code 16 is outside \[0, 15\]"):
        model.decode(torch.full((1, 4, 4), 16))
    with pytest.raises(ConfigError, match="code -1 is outside"):
        model.decode(torch.full((1, 4, 4), -1))
    with pytest.raises(SpecError, match="learns images of 1 to 4 channels, not vector of 3"):
        VQVAE.view(VQVAE.Config(), Vector(features=3))
    with pytest.raises(SpecError, match="with 5 widths takes images of 32 to 256 px"):
        VQVAE.view(VQVAE.Config(widths=(8,) * 5), Grid(channels=1, size=(28, 28)))
    with pytest.raises(ConfigError, match="prior_width = 100 is no multiple of 8"):
        VQVAE.Config(prior_width=100)
    with pytest.raises(ConfigError, match="needs data with classes"):
        model_of(conditional=True)
