"""`poiesis import` and `export` against diffusers itself: networks, samplers, whole folders.

Both sides compute the same function in another order of float32 operations; outputs have a
standard deviation of about 0.3, so 1e-5 is no vacuous bound.
"""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from poiesis.interop.frame import export, import_
from poiesis.models.trained import load
from poiesis.sampling import diffusion, solvers

pytest.importorskip("diffusers", reason="pip install 'poiesis[dev]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (
        DDIMScheduler,
        DDPMPipeline,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        UNet2DModel,
        UniPCMultistepScheduler,
    )

# The peer's own, of how it makes arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    # As google/ddpm-cifar10-32 has them
    "downsample_padding": 0,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
LIGHT = {"block_out_channels": (8, 8), "layers_per_block": 1}
"""Where the network itself does not matter."""
LEVELS = (0, 1, 500, 999)


def network(**options) -> Any:
    torch.manual_seed(0)
    return UNet2DModel(**{**TINY, **options}).eval()


def save(folder: Path, unet: Any, scheduler: Any = None) -> Path:
    DDPMPipeline(unet=unet, scheduler=scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder


def images(n=2, channels=3, size=(8, 8)):
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_network(ours: Any, theirs: Any, x: torch.Tensor, classes=None) -> None:
    spread = []
    for level in LEVELS:
        t = torch.full((len(x),), level)
        expected = theirs(x, t, *([] if classes is None else [classes])).sample
        torch.testing.assert_close(ours.output(x, t, classes), expected, rtol=0, atol=1e-5)
        spread.append(expected)
    assert torch.stack(spread).std() > 0.1


# -- networks -------------------------------------------------------------------------------------

VARIANTS = {
    "cifar10": {},
    "padding": {"downsample_padding": 1},
    "flip": {"flip_sin_to_cos": True},
    "shift": {"freq_shift": 0},
    "eps": {"norm_eps": 1e-2},
    "groups": {"norm_num_groups": 16},
    "heads": {"attention_head_dim": 8},
    "scale-shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale-shift-groups": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "middle-groups": {"attn_norm_num_groups": 16},
    "widths": {"block_out_channels": (32, 48)},
    "shallow": {"layers_per_block": 1, "in_channels": 1, "out_channels": 1},
    "oblong": {"sample_size": (8, 16)},
    "levels": {
        "block_out_channels": (16, 32, 32, 48),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "defaults": {
        "downsample_padding": 1,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "norm_eps": 1e-5,
        "attention_head_dim": 8,
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_networks_agree_in_both_directions(name, tmp_path):
    theirs = network(**VARIANTS[name])
    run = import_(save(tmp_path / "in", theirs), tmp_path / "run")
    ours = load(run.path).model
    size = theirs.config["sample_size"]
    x = images(
        channels=theirs.config["in_channels"], size=size if isinstance(size, tuple) else (8, 8)
    )
    assert_same_network(ours, theirs, x)
    export(run.path, tmp_path / "out")
    again = DDPMPipeline.from_pretrained(tmp_path / "out")
    assert_same_network(ours, again.unet.eval(), x)
    # Nothing is lost on the way there and back.
    before = load_file(tmp_path / "in" / "unet" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    for key, value in dict(theirs.config).items():
        if not key.startswith("_"):
            assert again.unet.config[key] == value or [*again.unet.config[key]] == [*value], key


def test_classes_are_taken_over_and_no_class_is_their_mean(tmp_path):
    theirs = network(num_class_embeds=5)
    run = import_(save(tmp_path / "in", theirs), tmp_path / "run")
    trained = load(run.path)
    assert trained.condition is not None and trained.condition.count == 5
    x, classes = images(n=5), torch.arange(5)
    assert_same_network(trained.model, theirs, x, classes)
    rows: Any = trained.model.get_parameter("unet.class_embedding.weight")
    torch.testing.assert_close(rows[5], theirs.class_embedding.weight.mean(0))
    export(run.path, tmp_path / "out")
    again = DDPMPipeline.from_pretrained(tmp_path / "out").unet.eval()
    assert again.config["num_class_embeds"] == 6
    assert_same_network(trained.model, again, x, classes)


def test_old_folders_are_read(tmp_path):
    """All at the top, attention's old names, no newer keys: as the first ones on the hub."""
    theirs = network()
    save(tmp_path / "new", theirs)
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(tmp_path / "new" / "model_index.json", old)
    tensors = load_file(tmp_path / "new" / "unet" / "diffusion_pytorch_model.safetensors")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, tensor in tensors.items():
        for new, before in names.items():
            key = key.replace(f".{new}.", f".{before}.")
        renamed[key] = tensor
    assert sum("proj_attn" in key for key in renamed) == 2 * (1 + 2 + 3)
    save_file(renamed, old / "diffusion_pytorch_model.safetensors")
    config = json.loads((tmp_path / "new" / "unet" / "config.json").read_text())
    for key in ("add_attention", "class_embed_type", "downsample_type", "num_train_timesteps"):
        del config[key]
    (old / "config.json").write_text(json.dumps(config))
    scheduler = {"_class_name": "DDPMScheduler", "beta_start": 1e-4, "beta_end": 0.02}
    scheduler |= {"beta_schedule": "linear", "clip_sample": True, "num_train_timesteps": 1000}
    scheduler |= {"trained_betas": None, "variance_type": "fixed_large"}
    (old / "scheduler_config.json").write_text(json.dumps(scheduler))
    trained = load(import_(old, tmp_path / "run").path)
    assert_same_network(trained.model, theirs, images())
    assert trained.sampling.sampler == "ancestral" and trained.sampling.variance == "large"


def test_a_network_alone_is_read(tmp_path):
    theirs = network()
    theirs.save_pretrained(tmp_path / "unet")
    run = import_(tmp_path / "unet", tmp_path / "run")
    assert "no scheduler" in run.read_json("import.json")["remarks"][0]
    assert_same_network(load(run.path).model, theirs, images())


# -- samplers on equal weights --------------------------------------------------------------------


class Shared:
    """Noise from the generator that the peer draws from in the same order."""

    def __init__(self, seed, rows):
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = rows

    def randn(self, *shape):
        return torch.randn(self.rows, *shape, generator=self.generator)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same network on both sides."""
    folder = tmp_path_factory.mktemp("pair")
    theirs = network()
    return load(import_(save(folder / "in", theirs), folder / "run").path).model, theirs


@torch.no_grad()
def walk_theirs(unet, scheduler, x, **step) -> torch.Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x, **step).prev_sample
    return x


@torch.no_grad()
def walk_ours(model, scheduler, run, x, noise=None, clip="none", **options) -> torch.Tensor:
    levels = [int(t) for t in scheduler.timesteps]
    path = diffusion.Path(
        levels,
        [*model.schedule.alpha[levels].tolist(), 1.0],
        [*model.schedule.sigma[levels].tolist(), 0.0],
    )

    def denoise(x_t, level):
        x0 = model.denoiser(x_t.float(), torch.full((len(x_t),), level))
        return diffusion.clip_x0(x0, clip).to(x_t)

    return run(denoise, path, x.double(), noise, **options).float()


@pytest.mark.parametrize("clip", ["none", "static"])
def test_five_steps_of_ddim(pair, clip):
    ours, theirs = pair
    scheduler: Any = DDIMScheduler(clip_sample=clip == "static")
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [800, 600, 400, 200, 0]
    assert diffusion.make_path(ours.schedule, 5, "uniform").levels == [800, 600, 400, 200, 0]
    x = images()
    # Where the estimate is clipped ours follows the clipped one, as the paper's code does.
    expected = walk_theirs(theirs, scheduler, x, use_clipped_model_output=True)
    assert_close(walk_ours(ours, scheduler, solvers.ddim, x, clip=clip), expected)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("steps", [5, 50])
def test_ddpm_with_shared_noise(pair, variance, steps):
    ours, theirs = pair
    scheduler: Any = DDPMScheduler(variance_type=f"fixed_{variance}", clip_sample=True)
    scheduler.set_timesteps(steps)
    x = images()
    expected = walk_theirs(theirs, scheduler, x, generator=torch.Generator().manual_seed(3))
    found = walk_ours(
        ours, scheduler, solvers.ancestral, x, Shared(3, len(x)), "static", variance=variance
    )
    assert_close(found, expected)


@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver(pair, order):
    ours, theirs = pair
    scheduler: Any = DPMSolverMultistepScheduler(solver_order=order)
    scheduler.set_timesteps(10)
    x = images()
    expected = walk_theirs(theirs, scheduler, x)
    found = walk_ours(ours, scheduler, solvers.dpm_solver_pp, x, order=order)
    assert_close(found, expected)


def test_stochastic_dpm_solver(pair):
    ours, theirs = pair
    scheduler: Any = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(10)
    x = images()
    expected = walk_theirs(theirs, scheduler, x, generator=torch.Generator().manual_seed(3))
    found = walk_ours(ours, scheduler, solvers.dpm_solver_pp_sde, x, Shared(3, len(x)))
    assert_close(found, expected)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(pair, order):
    ours, theirs = pair
    scheduler: Any = UniPCMultistepScheduler(solver_order=order)
    scheduler.set_timesteps(10)
    x = images()
    expected = walk_theirs(theirs, scheduler, x)
    assert_close(walk_ours(ours, scheduler, solvers.unipc, x, order=order), expected)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """1e-5 in units of the result's own spread; an untrained network's samples leave [-1, 1]."""
    assert float(expected.std()) > 0.1
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.std()))


# -- schedulers' files ----------------------------------------------------------------------------

SCHEDULES = {
    "linear": {"beta_schedule": "linear"},
    "range": {"beta_schedule": "linear", "beta_start": 1e-3, "beta_end": 0.012},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "short": {"beta_schedule": "linear", "num_train_timesteps": 100},
    "v": {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
    "zero": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "x0": {"prediction_type": "sample"},
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, DDPMScheduler) for name in SCHEDULES),
        ("range", DDIMScheduler),
        ("zero", DPMSolverMultistepScheduler),
        ("v", UniPCMultistepScheduler),
    ],
)
def test_noise_schedules_agree_in_both_directions(name, kind, tmp_path):
    scheduler: Any = kind(**SCHEDULES[name])
    folder = save(tmp_path / "in", network(**LIGHT), DDPMScheduler())
    scheduler.save_pretrained(folder / "scheduler")
    run = import_(folder, tmp_path / "run")
    ours: Any = load(run.path).model
    expected = scheduler.alphas_cumprod.double()
    # The peer's product is float32: it loses digits where little signal is left.
    torch.testing.assert_close(ours.schedule.alpha_bar, expected, rtol=1e-4, atol=1e-7)
    predictions = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
    assert ours.prediction == predictions[scheduler.config["prediction_type"]]
    export(run.path, tmp_path / "out")
    again: Any = DDPMPipeline.from_pretrained(tmp_path / "out").scheduler
    torch.testing.assert_close(again.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert again.config["prediction_type"] == scheduler.config["prediction_type"]


@pytest.mark.parametrize(
    ("scheduler", "sampling"),
    [
        (
            DDPMScheduler(),
            {"sampler": "ancestral", "variance": "small", "clip": "static", "spacing": "uniform"},
        ),
        (
            DDPMScheduler(variance_type="fixed_large", clip_sample=False),
            {"sampler": "ancestral", "variance": "large", "clip": "none"},
        ),
        (
            DDIMScheduler(timestep_spacing="trailing", thresholding=True),
            {"sampler": "ddim", "eta": 0.0, "spacing": "trailing", "clip": "dynamic"},
        ),
        (
            DPMSolverMultistepScheduler(use_lu_lambdas=True),
            {"sampler": "dpm-solver++", "order": 2, "spacing": "logsnr", "clip": "none"},
        ),
        (
            DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
            {"sampler": "dpm-solver++sde", "spacing": "trailing"},
        ),
        (UniPCMultistepScheduler(solver_order=3), {"sampler": "unipc", "order": 3}),
    ],
)
def test_schedulers_become_the_runs_sampling_options(scheduler, sampling, tmp_path):
    folder = save(tmp_path / "in", network(**LIGHT))
    scheduler.save_pretrained(folder / "scheduler")
    run = import_(folder, tmp_path / "run")
    assert run.read_json("import.json")["remarks"] == []
    found = load(run.path).sampling
    assert {name: getattr(found, name) for name in sampling} == sampling


def test_a_trained_run_draws_the_same_in_both(tmp_path):
    """Train ours, export, and let the peer's DDIM draw from the noise that ours begins with."""
    import poiesis
    from poiesis.rng import Noise

    run = poiesis.train(
        "ddpm",
        "digits",
        config={"model": {"channels": 16, "conditional": False, "prediction": "eps"}},
        steps=20,
        grids=0,
        validations=0,
        out=tmp_path / "run",
        quiet=True,
    )
    trained = load(run.path)
    export(run.path, tmp_path / "out")
    pipe: Any = DDPMPipeline.from_pretrained(tmp_path / "out")
    scheduler: Any = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    scheduler.set_timesteps(10)
    x = Noise(0, range(4)).randn(1, 8, 8)
    expected = walk_theirs(pipe.unet.eval(), scheduler, x, use_clipped_model_output=True)
    options = trained.options(sampler="ddim", steps=10, spacing="uniform")
    found = trained.model.sample(4, options=options, precision="fp32")
    assert_close(found, expected.clamp(-1, 1))
