"""Scheduler configurations of diffusers: noise and sampler of a `ddpm`, in and out.

What the network was trained with (levels, their noise, what it predicts) is taken over exactly or
refused. How samples are drawn becomes the run's sampling options, as near as they come; where a
scheduler would choose other steps, a remark says so. The defaults are those of diffusers 0.42.
"""

from __future__ import annotations

from typing import Any

import torch

from poiesis.errors import DataError
from poiesis.interop.foreign import Options, is_a
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.sampling.diffusion import LINEAR_BETAS, SCHEDULES, noise_schedule

__all__ = ["read_scheduler", "write_scheduler"]

_BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear"}
_BETA_SCHEDULES |= {"squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_SPACINGS = {"leading": "uniform", "trailing": "trailing"}
_VARIANCES = {"fixed_small": "small", "fixed_large": "large"}
_BOOLEANS = {True: True, False: False}


def read_scheduler(options: Options) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return model options, sampling options and remarks; raises DataError.

    Knows DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler and UniPCMultistepScheduler.
    """
    readers = {
        "DDPMScheduler": _ddpm,
        "DDIMScheduler": _ddim,
        "DPMSolverMultistepScheduler": _dpm_solver,
        "UniPCMultistepScheduler": _unipc,
    }
    read = options.one_of("_class_name", None, readers)
    model = _noise(options)
    remarks: list[str] = []
    sampling = read(options, remarks)
    sampling |= _clip(options, remarks, clips=read in (_ddpm, _ddim))
    options.end()
    return model, sampling, remarks


def _noise(options: Options) -> dict[str, Any]:
    """Return what the network was trained with."""
    steps = options.take("num_train_timesteps", 1000, int)
    ends = options.take("beta_start", 1e-4, float), options.take("beta_end", 0.02, float)
    # Old files say so with a switch.
    legacy = options.one_of("predict_epsilon", True, {True: "epsilon", False: "sample"})
    model = {
        "timesteps": steps,
        "prediction": options.one_of("prediction_type", legacy, _PREDICTIONS),
        "zero_snr": options.one_of("rescale_betas_zero_snr", False, _BOOLEANS),
    }
    given = options.take("trained_betas", None, list, optional=True)
    if given is not None:
        options.take("beta_schedule", "linear", str)  # which is then of no effect
        return {**model, **_known_betas(options, given, steps)}
    name = options.one_of("beta_schedule", "linear", _BETA_SCHEDULES)
    if "linear" in name:
        model["betas"] = [beta * steps / 1000 for beta in ends]
    return {**model, "schedule": name}


def _known_betas(options: Options, given: list[Any], steps: int) -> dict[str, Any]:
    """Return the schedule whose β a file lists one by one."""
    # A schedule has no fewer than 10 levels and no more than 100,000 (`DDPM.Config`).
    if len(given) == steps >= 10 and all(is_a(beta, float) and 0 < beta <= 1 for beta in given):
        listed = torch.tensor(given, dtype=torch.float64)
        for name in SCHEDULES:
            found = noise_schedule(name, steps).betas
            if torch.allclose(found, listed, rtol=1e-5, atol=1e-9):
                return {"schedule": name, "betas": list(LINEAR_BETAS)}
    raise DataError(
        f"{options.path}: trained_betas are those of none of the schedules "
        f"{', '.join(SCHEDULES)} over {steps} levels"
    )


def _ddpm(options: Options, remarks: list[str]) -> dict[str, Any]:
    variance = options.one_of("variance_type", "fixed_small", _VARIANCES)
    spacing = _spacing(options, remarks, "leading")
    return {"sampler": "ancestral", "variance": variance, "spacing": spacing}


def _ddim(options: Options, remarks: list[str]) -> dict[str, Any]:
    _without(options, remarks, {"set_alpha_to_one": True})
    return {"sampler": "ddim", "spacing": _spacing(options, remarks, "leading")}


_DPM_SOLVERS = {"dpmsolver++": "dpm-solver++", "sde-dpmsolver++": "dpm-solver++sde"}
_DPM_SOLVERS |= {"dpmsolver": "dpm-solver++", "sde-dpmsolver": "dpm-solver++sde"}


def _dpm_solver(options: Options, remarks: list[str]) -> dict[str, Any]:
    kind = options.take("algorithm_type", "dpmsolver++", str)
    sampling = {
        "sampler": options.one_of("algorithm_type", "dpmsolver++", _DPM_SOLVERS),
        "order": options.one_of("solver_order", 2, {1: 1, 2: 2, 3: 3}),
        "spacing": _spacing(options, remarks, "linspace", by_log_snr=True),
    }
    if not kind.endswith("++"):
        remarks.append(f"algorithm_type {kind!r} became {sampling['sampler']}")
    if sampling["order"] == 3:
        remarks.append("solver_order 3: its third-order term is ours halved, so samples differ")
    _without(options, remarks, {"solver_type": "midpoint", "euler_at_final": False})
    options.take_any("lambda_min_clipped", None)  # leaves out levels too noisy to matter; -inf
    options.one_of("variance_type", None, {None: None})
    return sampling


def _unipc(options: Options, remarks: list[str]) -> dict[str, Any]:
    sampling = {
        "sampler": "unipc",
        "order": options.one_of("solver_order", 2, {1: 1, 2: 2, 3: 3}),
        "spacing": _spacing(options, remarks, "linspace", by_log_snr=True),
    }
    plain = {"solver_type": "bh2", "predict_x0": True, "disable_corrector": [], "solver_p": None}
    plain |= {"sigma_min": None, "sigma_max": None, "shift_terminal": None}
    _without(options, remarks, plain)
    return sampling


def _spacing(
    options: Options, remarks: list[str], default: str, *, by_log_snr: bool = False
) -> str:
    """Return which levels are visited."""
    name = options.take("timestep_spacing", default, str)
    found = options.one_of("timestep_spacing", default, {**_SPACINGS, "linspace": "trailing"})
    # DPM-Solver's own leaves out the cleanest level of each, and so comes to lie within one of
    # ours, or between two.
    if (name == "linspace") != by_log_snr and name != "trailing":
        remarks.append(f"timestep_spacing {name!r} became {found}, the nearest here")
    if options.take("steps_offset", 0, int):
        remarks.append(f"steps_offset {options.values['steps_offset']} has no effect here")
    if not by_log_snr:
        return found
    shapes = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
    shapes |= {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False}
    shapes |= {"time_shift_type": "exponential", "final_sigmas_type": "zero"}
    _without(options, remarks, shapes)
    options.one_of("lower_order_final", True, _BOOLEANS)  # with which order 2 ends as ours does
    return "logsnr" if options.one_of("use_lu_lambdas", False, _BOOLEANS) else found


def _without(options: Options, remarks: list[str], plain: dict[str, Any]) -> None:
    """Say which options, other than these values, have no counterpart."""
    for key, value in plain.items():
        if options.take_any(key, value) != value:
            remarks.append(f"{key} = {options.values[key]!r} has no effect here")


def _clip(options: Options, remarks: list[str], *, clips: bool) -> dict[str, Any]:
    """Return how the estimate of clean data is kept in range."""
    static = False
    if clips:
        static = options.one_of("clip_sample", True, _BOOLEANS)
        if options.take("clip_sample_range", 1.0, float) != 1.0 and static:
            remarks.append("clip_sample_range became 1, the range of images")
    dynamic = options.one_of("thresholding", False, _BOOLEANS)
    _without(options, remarks, {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0})
    return {"clip": "dynamic" if dynamic else "static" if static else "none"}


def write_scheduler(config: DDPM.Config, sampling: DDPM.Sampling) -> dict[str, Any]:
    """Return the configuration of the DDPMScheduler that has a model's noise.

    Others are made of it: ``DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)``.
    """
    names = {ours: theirs for theirs, ours in _BETA_SCHEDULES.items()}
    first, last = (beta * 1000 / config.timesteps for beta in config.betas)
    listed = None
    if config.schedule not in names:
        listed = noise_schedule(config.schedule, config.timesteps).betas.tolist()
    small = sampling.variance == "small" or (sampling.sampler == "ddim" and sampling.eta == 1)
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": config.timesteps,
        "beta_start": first,
        "beta_end": last,
        "beta_schedule": names.get(config.schedule, "linear"),
        "trained_betas": listed,
        "prediction_type": {o: t for t, o in _PREDICTIONS.items()}[config.prediction],
        "rescale_betas_zero_snr": config.zero_snr,
        "variance_type": "fixed_small" if small else "fixed_large",
        "clip_sample": sampling.clip == "static",
        "clip_sample_range": 1.0,
        "thresholding": sampling.clip == "dynamic",
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1.0,
        "timestep_spacing": "leading" if sampling.spacing == "uniform" else "trailing",
        "steps_offset": 0,
    }
