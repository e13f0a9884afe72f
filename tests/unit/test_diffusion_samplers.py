"""Schedules, conversions, samplers and the bound, against closed forms and analytic denoisers."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from poiesis.errors import ConfigError
from poiesis.rng import Noise
from poiesis.sampling import diffusion as d
from poiesis.sampling import likelihood, processes, solvers

SCHEDULES = {"linear": d.linear_schedule, "cosine": d.cosine_schedule}
PREDICTIONS = ("eps", "x0", "v", "velocity", "F")
SPACINGS = ("uniform", "trailing", "quadratic", "logsnr")


# -- schedules ------------------------------------------------------------------------------------


def test_linear_schedule_has_the_papers_values():
    schedule = d.linear_schedule(1000)
    assert schedule.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    # ᾱ_1000 = 4.0e-5: DDPM, section 4, gives L_T ≈ 1e-5 bits per dimension from it
    assert float(schedule.alpha_bar[-1]) == pytest.approx(4.0358e-5, rel=1e-4)
    assert float(schedule.alpha_bar[0]) == pytest.approx(0.9999)
    short = d.linear_schedule(100)
    assert short.betas[[0, -1]].tolist() == pytest.approx([1e-3, 0.2])
    assert float(d.linear_schedule(10).betas.max()) == 0.999


def test_cosine_schedule_has_its_closed_form():
    total, s = 400, 0.008
    schedule = d.cosine_schedule(total)
    t = torch.arange(1, total, dtype=torch.float64)
    f = torch.cos((t / total + s) / (1 + s) * math.pi / 2) ** 2
    f0 = math.cos(s / (1 + s) * math.pi / 2) ** 2
    torch.testing.assert_close(schedule.alpha_bar[:-1], f / f0)
    assert float(schedule.betas[-1]) == 0.999


@pytest.mark.parametrize("kind", SCHEDULES)
def test_forward_process_composes_its_steps(kind):
    schedule = SCHEDULES[kind](50)
    mean, variance = 1.0, 0.0
    for i, beta in enumerate(schedule.betas.tolist()):
        mean, variance = mean * math.sqrt(1 - beta), (1 - beta) * variance + beta
        assert float(schedule.alpha[i]) == pytest.approx(mean)
        assert float(schedule.sigma[i]) ** 2 == pytest.approx(variance)
    assert torch.all(schedule.log_snr.diff() < 0)


# -- conversions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_target_stands_for_the_same_x0(prediction):
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 3, 4, 4, generator=g, dtype=torch.float64)
    schedule = d.cosine_schedule(100)
    t = torch.tensor([0, 10, 50, 90, 98])
    alpha, sigma = (v[t].view(-1, 1, 1, 1) for v in (schedule.alpha, schedule.sigma))
    x_t = alpha * x0 + sigma * eps
    target = d.target_of(prediction, x0, eps, alpha, sigma)
    torch.testing.assert_close(d.x0_from(prediction, target, x_t, alpha, sigma), x0)
    torch.testing.assert_close(d.epsilon_from(x0, x_t, alpha, sigma), eps)


def test_guidance_is_the_same_in_noise_and_in_data():
    g = torch.Generator().manual_seed(1)
    x_t, c, u = torch.randn(3, 4, 6, generator=g, dtype=torch.float64)
    alpha, sigma, scale = 0.6, 0.8, 2.5
    by_x0 = d.guide(*(d.x0_from("eps", e, x_t, alpha, sigma) for e in (c, u)), scale)
    by_eps = d.x0_from("eps", u + scale * (c - u), x_t, alpha, sigma)
    torch.testing.assert_close(by_x0, by_eps)
    assert torch.equal(d.guide(c, u, 0), u)
    torch.testing.assert_close(d.guide(c, u, 1), c)


def test_clipping():
    x0 = torch.linspace(-4, 4, 1001)[None, None, None]
    assert torch.equal(d.clip_x0(x0, "none"), x0)
    assert torch.equal(d.clip_x0(x0, "static"), x0.clamp(-1, 1))
    # The 99.5th percentile of |x0| is 3.98, so values below it keep their proportions.
    dynamic = d.clip_x0(x0, "dynamic")
    torch.testing.assert_close(dynamic, (x0 / 3.98).clamp(-1, 1), atol=2e-3, rtol=0)
    inside = x0 / 8
    assert torch.equal(d.clip_x0(inside, "dynamic"), inside)


# -- paths ----------------------------------------------------------------------------------------


def test_paths_visit_the_published_levels():
    schedule = d.linear_schedule(1000)
    assert d.make_path(schedule, 5, "uniform").levels == [800, 600, 400, 200, 0]
    assert d.make_path(schedule, 5, "trailing").levels == [999, 799, 599, 399, 199]
    quadratic = [round(v) for v in (np.linspace(0, math.sqrt(800), 10) ** 2)[::-1]]
    assert d.make_path(schedule, 10, "quadratic").levels == quadratic
    assert d.make_path(d.cosine_schedule(1000), 10, "quadratic").levels[0] == 999
    for spacing in ("uniform", "trailing"):
        assert d.make_path(schedule, 1000, spacing).levels == list(range(999, -1, -1))
    lam = schedule.log_snr[d.make_path(schedule, 10, "logsnr").levels]
    torch.testing.assert_close(lam.diff(), lam.diff().mean().expand(9), rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 19, 60])
def test_paths_fall_to_clean_data(kind, spacing, steps):
    path = d.make_path(SCHEDULES[kind](60), steps, spacing)
    assert 1 <= len(path.levels) <= steps
    assert all(a > b for a, b in zip(path.levels, path.levels[1:], strict=False))
    assert (path.alpha[-1], path.sigma[-1]) == (1.0, 0.0)
    x = solvers.dpm_solver_pp(lambda x, level: 0.5 * x, path, torch.ones(1, 1))
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("steps", [0, 61])
def test_paths_say_how_many_steps_there_are(steps):
    with pytest.raises(ConfigError, match=rf"steps = {steps} is outside \[1, 60\]"):
        d.make_path(d.linear_schedule(60), steps, "trailing")


# -- samplers -------------------------------------------------------------------------------------


def gaussian(schedule, mean, std):
    """The exact denoiser of data from N(mean, std²)."""

    def denoise(x, level):
        alpha, sigma = float(schedule.alpha[level]), float(schedule.sigma[level])
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return denoise


def test_posterior_is_ddpm_equation_7():
    schedule = d.linear_schedule(1000)
    for t in (1, 2, 500, 999):
        beta, ab, ab_s = (
            float(v) for v in (schedule.betas[t], schedule.alpha_bar[t], schedule.alpha_bar[t - 1])
        )
        path = d.make_path(schedule, 1000, "trailing")
        i = path.levels.index(t)
        a, b, small, large = d.posterior(
            path.alpha[i], path.sigma[i], path.alpha[i + 1], path.sigma[i + 1]
        )
        assert a == pytest.approx(math.sqrt(1 - beta) * (1 - ab_s) / (1 - ab))
        assert b == pytest.approx(math.sqrt(ab_s) * beta / (1 - ab))
        assert small == pytest.approx(beta * (1 - ab_s) / (1 - ab))
        assert large == pytest.approx(beta)


@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"), [("ddim", 1000, 0.01), ("dpm-solver++", 50, 0.01)]
)
def test_deterministic_samplers_map_noise_to_the_data_gaussian(sampler, steps, tolerance):
    schedule, mean, std = d.linear_schedule(1000), 0.4, 0.3
    denoise = gaussian(schedule, mean, std)
    path = d.make_path(schedule, steps, "logsnr" if sampler != "ddim" else "trailing")
    run = solvers.ddim if sampler == "ddim" else solvers.dpm_solver_pp
    # With a Gaussian's denoiser the sampler is affine: two points tell its image of N(0, 1).
    out = run(denoise, path, torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert float(out[0]) == pytest.approx(mean, abs=tolerance)
    assert float(out[1] - out[0]) == pytest.approx(std, abs=tolerance)


@pytest.mark.parametrize("steps", [1000, 50])
def test_ancestral_sampling_keeps_unit_variance_exactly(steps):
    # β_t is the exact variance of the reverse step if the data is N(0, 1), at any step length.
    schedule = d.linear_schedule(1000)
    path = d.make_path(schedule, steps, "trailing")
    noise = Noise(0, range(4))
    # The last step returns the estimate itself, α x of its level, so look before it.
    path = d.Path(path.levels[:-1], path.alpha[:-1], path.sigma[:-1])
    x = solvers.ancestral(gaussian(schedule, 0.0, 1.0), path, noise.randn(10_000), noise)
    assert float(x.mean()) == pytest.approx(0, abs=0.02)  # 4 standard errors of 40,000 draws
    assert float(x.var()) == pytest.approx(1, abs=0.028)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim, eta 1"])
def test_stochastic_samplers_reach_the_data_gaussian(sampler):
    schedule, mean, std = d.linear_schedule(1000), -0.2, 0.5
    path = d.make_path(schedule, 1000, "trailing")
    noise = Noise(3, range(4))
    x = noise.randn(10_000)
    denoise = gaussian(schedule, mean, std)
    if sampler == "ancestral":
        x = solvers.ancestral(denoise, path, x, noise)
    else:
        x = solvers.ddim(denoise, path, x, noise, eta=1.0)
    assert float(x.mean()) == pytest.approx(mean, abs=0.01)
    assert float(x.std()) == pytest.approx(std, abs=0.015)


def test_ddim_with_eta_1_is_ddpm_with_the_posterior_variance():
    schedule = d.cosine_schedule(100)
    path = d.make_path(schedule, 10, "trailing")
    denoise = gaussian(schedule, 0.3, 0.5)
    x = Noise(1, range(3)).randn(7).double()
    got = solvers.ddim(denoise, path, x, Noise(2, range(3)), eta=1.0)
    noise = Noise(2, range(3))
    for i, level in enumerate(path.levels):
        a, b, small, _ = d.posterior(
            path.alpha[i], path.sigma[i], path.alpha[i + 1], path.sigma[i + 1]
        )
        x = a * x + b * denoise(x, level)
        if small > 0:
            x = x + math.sqrt(small) * noise.randn(7)
    torch.testing.assert_close(got, x)


def mixture(x, alpha, sigma):
    """The exact denoiser of ½ N(-0.6, 0.2²) + ½ N(0.7, 0.3²)."""
    means, stds = torch.tensor([[-0.6, 0.7], [0.2, 0.3]], dtype=torch.float64)
    x = x[:, None]
    variance = alpha**2 * stds**2 + sigma**2
    weight = torch.softmax(-0.5 * (x - alpha * means) ** 2 / variance - 0.5 * variance.log(), dim=1)
    each = means + alpha * stds**2 / variance * (x - alpha * means)
    return (weight * each).sum(1)


def vp(lam):
    """α and σ of log(α/σ) where α² + σ² = 1."""
    return 1 / math.sqrt(1 + math.exp(-2 * lam)), 1 / math.sqrt(1 + math.exp(2 * lam))


def flow(lam):
    """α and σ of log(α/σ) where α + σ = 1."""
    return 1 / (1 + math.exp(-lam)), 1 / (1 + math.exp(lam))


def edm(lam):
    """α and σ of log(α/σ) where α = 1."""
    return 1.0, math.exp(-lam)


def walk(process, steps, low=-3.0, high=3.0):
    """A path of equal steps in log(α/σ), from noise to nearly clean; its levels are (α, σ)."""
    points = [process(low + (high - low) * i / steps) for i in range(steps + 1)]
    alpha, sigma = zip(*points, strict=True)
    return d.Path(points[:-1], alpha, sigma, lambda lam: (*process(lam), process(lam)))


def truth(path, start):
    """A Runge-Kutta solution of dy/dκ = (y − x0)/κ with y = x/α and κ = σ/α."""

    def slope(kappa, y):
        alpha = 1 / math.sqrt(1 + kappa**2)
        x0 = mixture(torch.from_numpy(y) * alpha, alpha, alpha * kappa).numpy()
        return (y - x0) / kappa

    begin, end = (path.sigma[i] / path.alpha[i] for i in (0, -1))
    solved = solve_ivp(slope, (begin, end), start.numpy() / path.alpha[0], rtol=1e-11, atol=1e-12)
    return solved.y[:, -1] * path.alpha[-1]


START = torch.linspace(-2, 2, 9, dtype=torch.float64)


@pytest.mark.parametrize("process", [vp, flow, edm])
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (solvers.ddim, 1),
        (solvers.heun, 2),
        (solvers.dpm_solver_pp, 2),
        (functools.partial(solvers.dpm_solver_pp, order=3), 3),
        # The corrector makes UniPC's order one more than its predictor's (theorem 3.1).
        (functools.partial(solvers.unipc, order=1), 2),
        (functools.partial(solvers.unipc, order=2), 3),
        (functools.partial(solvers.unipc, order=3), 4),
    ],
)
def test_convergence_order_on_a_mixture(process, sampler, order):
    counts = [80, 160, 320, 640]
    start = START * math.hypot(*process(-3.0))
    expected = truth(walk(process, 1), start)
    errors = []
    for steps in counts:
        x = sampler(lambda x, level: mixture(x, *level), walk(process, steps), start)
        errors.append(float(np.sqrt(np.mean((x.numpy() - expected) ** 2))))
    measured = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert measured == pytest.approx(order, abs=0.2), errors
    assert errors[-1] < {1: 1e-2, 2: 1e-4, 3: 1e-6, 4: 1e-8}[order]


@pytest.mark.parametrize("process", [vp, flow, edm])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_adaptive_steps_keep_to_the_tolerance(process, tolerance):
    start = START * math.hypot(*process(-3.0))
    path = walk(process, 5000)  # only the ends matter, and the length of its last step
    calls = []

    def denoise(x, level):
        calls.append(level)
        return mixture(x[:, 0], *level)[:, None]

    x = solvers.adaptive(denoise, path, start[:, None], tolerance=tolerance)
    expected = truth(path, start)
    assert np.abs(x[:, 0].numpy() - expected).max() < 10 * tolerance + 1e-6
    assert 10 < len(calls) < 1000


def test_adaptive_needs_levels_between():
    path = d.make_path(d.linear_schedule(100), 10, "trailing")
    with pytest.raises(ConfigError, match="adaptive chooses its own noise levels"):
        solvers.adaptive(lambda x, level: x, path, torch.zeros(1, 1))


# -- continuous processes -------------------------------------------------------------------------

PROCESSES = {
    "straight": processes.straight(),
    "exploding": processes.exploding(),
    "preserving": processes.preserving(),
    "sub-preserving": processes.sub_preserving(),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_invert_their_noise_level(name):
    process = PROCESSES[name]
    for share in (0.01, 0.1, 0.5, 0.9, 0.999):
        t = process.t_min + share * (process.t_max - process.t_min)
        alpha, sigma = process.at(t)
        assert process.time(math.log(alpha / sigma)) == pytest.approx(t, rel=1e-6)


def test_processes_have_their_closed_forms():
    t = torch.tensor([0.1, 0.7], dtype=torch.float64)
    # dx = -β/2 x dt + sqrt(β) dw by Euler steps of the moments
    mean, variance, n = torch.ones(2).double(), torch.zeros(2).double(), 20_000
    for i in range(n):
        beta = 0.1 + (i + 0.5) / n * t * 19.9
        mean = mean * (1 - beta * t / n / 2)
        variance = variance * (1 - beta * t / n) + beta * t / n
    alpha, sigma = PROCESSES["preserving"].marginal(t)
    torch.testing.assert_close(alpha, mean, rtol=1e-3, atol=0)
    torch.testing.assert_close(sigma**2, variance, rtol=1e-3, atol=0)
    # the sub-VP variance is the square of the VP one
    torch.testing.assert_close(PROCESSES["sub-preserving"].marginal(t)[1], sigma**2)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("spacing", ["uniform", "logsnr", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 18])
def test_continuous_paths_fall_to_clean_data(name, spacing, steps):
    process = PROCESSES[name]
    path = process.path(steps, spacing)
    assert len(path.levels) == steps and path.levels[0] == process.t_max
    assert all(a > b for a, b in zip(path.levels, path.levels[1:], strict=False))
    assert (path.alpha[-1], path.sigma[-1]) == (1.0, 0.0)
    assert path.sigma[-2] > 0
    for solver in solvers.SOLVERS.values():
        x = solver.run(lambda x, level: 0.5 * x, path, torch.ones(2, 1).double(), Noise(0, [0, 1]))
        assert torch.isfinite(x).all()


def test_karras_spacing_is_edms():
    path = PROCESSES["exploding"].path(18, "karras")
    expected = [
        (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)
    ]
    assert list(path.sigma[:-1]) == pytest.approx(expected)


@pytest.mark.parametrize("name", PROCESSES)
def test_likelihood_by_the_flow_is_the_mixtures(name):
    process = PROCESSES[name]
    path = process.path(10, "logsnr")
    x = torch.linspace(-1.2, 1.5, 7, dtype=torch.float64)[:, None]

    def denoise(x, level):
        return mixture(x[:, 0], *process.at(level))[:, None]

    got, _ = likelihood.flow_log_likelihood(denoise, path, x, tolerance=1e-6)
    alpha, sigma = path.alpha[-2], path.sigma[-2]
    means, stds = torch.tensor([[-0.6, 0.7], [0.2, 0.3]], dtype=torch.float64)
    part = torch.distributions.Normal(alpha * means, (alpha**2 * stds**2 + sigma**2).sqrt())
    expected = torch.logsumexp(part.log_prob(x) - math.log(2), 1)
    assert float((got - expected).abs().max()) / math.log(2) < 0.01


# -- the bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("mean", [-1.3, -0.5, 0.0, 0.37, 1.0])
def test_decoder_gives_probabilities_of_levels(levels, mean):
    x = torch.linspace(-1, 1, levels)[:, None]
    log_p = d.decoder_log_likelihood(x, torch.full_like(x, mean), 0.05, levels)
    assert torch.isfinite(log_p).all()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)


def test_prior_term_is_the_gaussian_divergence():
    schedule = d.linear_schedule(100)
    x0 = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    q = torch.distributions.Normal(schedule.alpha[-1] * x0, schedule.sigma[-1])
    p = torch.distributions.Normal(torch.zeros(2).double(), 1.0)
    expected = torch.distributions.kl_divergence(q, p).sum(1)
    torch.testing.assert_close(d.prior_kl(schedule, x0), expected)


def test_step_term_is_the_divergence_of_the_two_posteriors():
    schedule = d.cosine_schedule(50)
    x0, guess = torch.tensor([[[0.5, -1.0]], [[0.2, 0.4]]], dtype=torch.float64)
    for t in (1, 7, 48):
        a_t, s_t = float(schedule.alpha[t]), float(schedule.sigma[t])
        a_s, s_s = float(schedule.alpha[t - 1]), float(schedule.sigma[t - 1])
        a, b, small, _ = d.posterior(a_t, s_t, a_s, s_s)
        x_t = torch.tensor([[0.1, 0.3]], dtype=torch.float64)
        q = torch.distributions.Normal(a * x_t + b * x0, math.sqrt(small))
        p = torch.distributions.Normal(a * x_t + b * guess, math.sqrt(small))
        expected = torch.distributions.kl_divergence(q, p).sum(1)
        got = d.step_kl(schedule, torch.tensor([t]), x0, guess)
        torch.testing.assert_close(got, expected)


def test_decoder_reads_8_bit_data_as_ddpm_does_and_coarser_data_earlier():
    schedule = d.linear_schedule(1000)
    level, sigma = d.decoder_level(schedule, 256)
    ab = schedule.alpha_bar
    published = math.sqrt(schedule.betas[1] * (1 - ab[0]) / (1 - ab[1]))
    assert (level, sigma) == (0, pytest.approx(published, rel=1e-3))
    for data_levels in (2, 17):
        level, sigma = d.decoder_level(schedule, data_levels)
        noise = schedule.sigma / schedule.alpha
        assert noise[level] <= 0.75 / (data_levels - 1) < noise[level + 1]
