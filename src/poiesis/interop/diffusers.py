"""Folders of diffusers: an unconditional or class-conditional `UNet2DModel` is our `ddpm`.

    model_index.json                              what is where
    unet/config.json                              the network
    unet/diffusion_pytorch_model.safetensors      its weights
    scheduler/scheduler_config.json               noise and sampler

Older folders hold all of them at the top, and name attention's layers `query`, `key`, `value` and
`proj_attn`. A folder of the network alone is read too. The default values of options that a file
leaves out are those of diffusers 0.42. Weights of other kinds than safetensors are not read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poiesis.data.codecs import ImageCodec
from poiesis.data.dataset import DataSet
from poiesis.errors import CapabilityError, DataError, SpecError
from poiesis.files import read_safetensors
from poiesis.interop.diffusers_schedulers import read_scheduler, write_scheduler
from poiesis.interop.foreign import Foreign, Options, is_a, json_bytes
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.models.diffusion.grids import padded
from poiesis.models.trained import Trained
from poiesis.runs import sha256
from poiesis.spec import Classes, Grid

__all__ = ["read", "write"]

_VERSION = "0.42.1"
"""Of the package whose files these are like."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
_ROWS = "class_embedding.weight"
_LEVELS = 12
"""Most resolutions."""
_MOST = 65_536
"""Most channels, and classes."""

_KEYS = (
    ("time_embedding.0.", "time_embedding.linear_1."),
    ("time_embedding.2.", "time_embedding.linear_2."),
    (".to_out.", ".to_out.0."),
)
"""Parts of the names of weights, ours and theirs."""
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out"}


# -- in -------------------------------------------------------------------------------------------


def read(folder: Path, data: DataSet | None) -> Foreign:
    """Read a pipeline's folder, or one of the network alone; raises DataError."""
    remarks: list[str] = []
    unet, scheduler = _parts(folder, remarks)
    config = unet / "config.json"
    options, channels, size, classes = _read_network(Options.read(config))
    sampling: dict[str, Any] = {}
    if scheduler is not None:
        noise, sampling, said = read_scheduler(Options.read(scheduler))
        remarks += said
    else:
        noise = {"schedule": "linear", "prediction": "eps"}
        remarks.append("no scheduler: taken to be DDPM's, 1,000 levels, linear, epsilon")
    options |= noise
    weights = _weights_file(unet)
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for theirs, tensor in read_safetensors(weights).items():
        ours = f"unet.{_our_name(theirs)}"
        if ours in tensors:
            raise DataError(f"{weights}: holds {theirs!r} twice, as {names[ours]!r} too")
        names[ours], tensors[ours] = theirs, tensor.float()
    spec, codec = _images(config, channels, size, data)
    side = _longer_side(config, size, spec, len(options["multipliers"]))
    options["attention"] = [side // 2**i for i, on in enumerate(options["attention"]) if on]
    condition = None
    if classes is not None:
        condition = _classes(config, tensors, classes, data, options, remarks)
    files = [config, weights, *([scheduler] if scheduler else [])]
    return Foreign(
        model="ddpm",
        options=options,
        spec=spec,
        condition=condition,
        codec=codec,
        tensors=tensors,
        name_of=lambda ours: names.get(ours) or _their_name(ours.removeprefix("unet.")),
        sampling=sampling,
        remarks=remarks,
        files={str(path.relative_to(folder)): sha256(path) for path in files},
    )


def _parts(folder: Path, remarks: list[str]) -> tuple[Path, Path | None]:
    """Return the folder of the network and the scheduler's file."""
    index = folder / "model_index.json"
    if not index.is_file():
        if not (folder / "config.json").is_file():
            raise DataError(
                f"{folder}: holds neither model_index.json (a pipeline) nor config.json (a network)"
            )
        scheduler = folder / "scheduler_config.json"
        return folder, scheduler if scheduler.is_file() else None
    options = Options.read(index)
    kind = options.values.get("_class_name")
    if kind not in ("DDPMPipeline", "DDIMPipeline"):
        raise DataError(
            f"{index}: the pipeline {kind!r} is not known; known: DDPMPipeline, DDIMPipeline"
        )
    for name in ("unet", "scheduler"):
        options.take(name, None, list)
    options.end()

    def place(name: str) -> Path:
        return folder / name if (folder / name).is_dir() else folder

    return place("unet"), place("scheduler") / "scheduler_config.json"


def _weights_file(unet: Path) -> Path:
    path = unet / _WEIGHTS
    if path.is_file():
        return path
    others = [p.name for p in sorted(unet.glob("diffusion_pytorch_model*"))]
    if any(name.endswith((".bin", ".ckpt", ".pt")) for name in others):
        raise DataError(
            f"{unet / others[0]}: is a pickle, which is not read; save the model as safetensors "
            "(save_pretrained of a recent diffusers does)"
        )
    hint = f"; there is {others[0]}" if others else ""
    raise DataError(f"{path}: is not there{hint}; fetch the whole folder again")


class _Network(NamedTuple):
    options: dict[str, Any]
    """Of the model; `attention` is still a switch for each resolution."""
    channels: int
    size: tuple[int, int] | None
    classes: int | None
    """Rows of the class embedding."""


def _read_network(options: Options) -> _Network:
    """Read the network's configuration; raises DataError for what ours has not."""
    take, path = options.take, options.path
    options.one_of("_class_name", "UNet2DModel", {"UNet2DModel": True})
    widths = _each(options, "block_out_channels", int, [224, 448, 672, 896])
    down = _each(options, "down_block_types", str, ["DownBlock2D", *["AttnDownBlock2D"] * 3])
    up = _each(options, "up_block_types", str, [*["AttnUpBlock2D"] * 3, "UpBlock2D"])
    for key, kinds, known in (("down_block_types", down, _DOWN), ("up_block_types", up, _UP)):
        for kind in kinds:
            if kind not in known:
                raise DataError(f"{path}: {key} holds {kind!r}; known: {', '.join(known)}")
        if len(kinds) != len(widths):
            raise DataError(
                f"{path}: {key} has {len(kinds)} entries, block_out_channels has {len(widths)}"
            )
    attention = [_DOWN[kind] for kind in down]
    if attention != [_UP[kind] for kind in reversed(up)]:
        raise DataError(
            f"{path}: up_block_types does not mirror down_block_types: attention must be at the "
            "same resolutions on both ways"
        )
    if not widths or min(widths) < 1 or max(widths) > _MOST or len(widths) > _LEVELS:
        raise DataError(
            f"{path}: block_out_channels = {widths[: _LEVELS + 1]} are not 1 to {_LEVELS} widths "
            f"from 1 to {_MOST}"
        )
    channels, outside = take("in_channels", 3, int), take("out_channels", 3, int)
    if channels != outside:
        raise DataError(
            f"{path}: out_channels = {outside} is not in_channels = {channels}: networks that also "
            "say a variance, or see a second image, can't be taken over"
        )
    plain: dict[str, tuple[Any, ...]] = {
        "center_input_sample": (False,),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": (None, 4 * widths[0]),
        "mid_block_type": ("UNetMidBlock2D",),
        "mid_block_scale_factor": (1,),
        "downsample_type": ("conv",),
        "upsample_type": ("conv",),
        "act_fn": ("silu", "swish"),
        "add_attention": (True,),
        "attention_legacy_order": (False,),
        "class_embed_type": (None,),
        "num_train_timesteps": (None,),
    }
    for key, known in plain.items():
        options.one_of(key, known[0], dict.fromkeys(known))
    scale_shift = {"default": False, "scale_shift": True}
    shift = options.one_of("resnet_time_scale_shift", "default", scale_shift)
    middle = take("attn_norm_num_groups", None, int, optional=True)
    found = {
        "channels": widths[0],
        "multipliers": [w // widths[0] if w % widths[0] == 0 else w / widths[0] for w in widths],
        "blocks": take("layers_per_block", 2, int),
        "attention": attention,
        "groups": take("norm_num_groups", 32, int),
        "dropout": take("dropout", 0.0, float),
        "unet": {
            "head_width": take("attention_head_dim", 8, int, optional=True),
            "scale_shift": shift,
            "padding": options.one_of("downsample_padding", 1, {0: "end", 1: "both"}),
            "norm_eps": take("norm_eps", 1e-5, float),
            # With scale and shift the middle has a normalisation only where the file asks for it.
            "middle_groups": 0 if shift and middle is None else middle,
            "cosines_first": options.one_of("flip_sin_to_cos", True, {True: True, False: False}),
            "frequency_shift": options.one_of("freq_shift", 0, {0: 0, 1: 1}),
        },
    }
    size = options.take_any("sample_size", None)
    size = [size, size] if is_a(size, int) else size
    sides = isinstance(size, list) and len(size) == 2 and all(is_a(side, int) for side in size)
    if size is not None and not sides:
        raise DataError(f"{path}: sample_size = {size!r} is neither a side nor height and width")
    classes = take("num_class_embeds", None, int, optional=True)
    if classes is not None and not 1 <= classes <= _MOST:
        raise DataError(f"{path}: num_class_embeds = {classes} is outside [1, {_MOST}]")
    found["conditional"] = classes is not None
    options.end()
    return _Network(found, channels, None if size is None else (size[0], size[1]), classes)


def _each(options: Options, key: str, kind: type, default: list[Any]) -> list[Any]:
    """Return a list of things of one kind."""
    found = options.take(key, default, list)
    if not all(is_a(item, kind) for item in found):
        what = "whole numbers" if kind is int else "words"
        raise DataError(f"{options.path}: {key} = {found!r} is no list of {what}")
    return found


def _images(
    path: Path, channels: int, size: tuple[int, int] | None, data: DataSet | None
) -> tuple[Grid, ImageCodec]:
    """Return spec and codec of the images, those of the data where they are known."""
    if data is not None:
        spec = data.spec
        if not isinstance(spec, Grid) or len(spec.size) != 2 or spec.channels != channels:
            raise SpecError(f"{path}: is a network for images of {channels} channels, not {spec}")
        assert isinstance(data.codec, ImageCodec)
        return spec, data.codec
    if size is None:
        raise DataError(f"{path}: sample_size is null; name the data with --data")
    codec = ImageCodec(channels=channels, size=size)
    return codec.spec, codec


def _longer_side(path: Path, size: tuple[int, int] | None, spec: Grid, levels: int) -> int:
    """Return the longer side of what the network sees; raises DataError for another than it had."""
    seen = tuple(padded(side, levels) for side in spec.size)
    if size is not None and size != seen:
        have, want = ("x".join(map(str, pair)) for pair in (seen, size))
        if tuple(spec.size) == size:
            way = f"can't be halved {levels - 1} times, as block_out_channels asks"
        else:
            way = f"is not that of the data, {have}; read them with --data.resize {min(size)}"
        raise DataError(f"{path}: sample_size = {want} {way}")
    return max(seen)


def _classes(
    path: Path,
    tensors: dict[str, Tensor],
    rows: int,
    data: DataSet | None,
    options: dict[str, Any],
    remarks: list[str],
) -> Classes:
    """Return the classes; make the row of "no class" that ours has, where the file has none."""
    known = None if data is None or not isinstance(data.condition, Classes) else data.condition
    if known is not None and rows == known.count + 1:
        return known
    if known is not None and rows != known.count:
        raise DataError(
            f"{path}: num_class_embeds = {rows}, but the data has {known.count} classes"
        )
    name = f"unet.{_ROWS}"
    if name in tensors and tensors[name].ndim == 2:
        tensors[name] = torch.cat([tensors[name], tensors[name].mean(0, keepdim=True)])
    options["label_dropout"] = 0.0
    remarks.append(
        '"no class" is the mean of the classes, as the network never learned it: sample with '
        "guidance only after training on with --model.label-dropout 0.1"
    )
    return known or Classes(count=rows)


def _our_name(theirs: str) -> str:
    """Return our name of a weight, of old and new files."""
    name = re.sub(r"\.(down|up)samplers\.0\.", ".resample.", theirs)
    old = "|".join(_OLD)
    name = re.sub(
        rf"(attentions\.\d+)\.({old})\.", lambda found: f"{found[1]}.{_OLD[found[2]]}.", name
    )
    for ours, other in _KEYS:
        name = name.replace(other, ours)
    return name


# -- out ------------------------------------------------------------------------------------------


def write(trained: Trained) -> tuple[dict[str, bytes], list[str]]:
    """Return the files of a DDPMPipeline, and remarks; raises CapabilityError."""
    from safetensors.torch import save

    model = trained.model
    spec = getattr(model, "spec", None)
    if not isinstance(model, DDPM) or not isinstance(spec, Grid) or len(spec.size) != 2:
        raise CapabilityError(
            f"a diffusers folder holds a ddpm of images; this is a {trained.name} of "
            f"{trained.data_spec}"
        )
    config: DDPM.Config = model.config
    if not (model.told is None or isinstance(model.told, Classes)):
        raise CapabilityError(
            f"a diffusers folder holds networks of classes, not of "
            f"{type(model.told).__name__.lower()}"
        )
    if config.network != "unet":
        raise CapabilityError(
            "only a ddpm whose network is a U-Net can be written as a diffusers folder; this one's "
            f"is {config.network}"
        )
    if config.self_condition:
        raise CapabilityError(
            "a diffusers folder holds networks that see x_t alone; this one sees its estimate too "
            "(self_condition)"
        )
    if config.variance == "learned":
        raise CapabilityError(
            "only a ddpm whose variance is fixed can be written as a diffusers folder; this one's "
            "is learned"
        )
    if config.fold != 1:
        raise CapabilityError(
            f"a diffusers folder holds networks of unfolded pixels; this one has fold = "
            f"{config.fold}"
        )
    if config.multipliers[0] != 1:
        raise CapabilityError(
            f"a diffusers folder holds networks whose first multiplier is 1, not "
            f"{config.multipliers[0]}"
        )
    if config.unet.middle_groups == 0 and not config.unet.scale_shift:
        raise CapabilityError(
            "a diffusers folder holds networks without a normalisation in the middle (unet."
            "middle_groups = 0) only with unet.scale_shift"
        )
    tensors = {
        _their_name(k): v.contiguous() for k, v in model.get_submodule("unet").state_dict().items()
    }
    remarks = []
    if model.told is not None:
        remarks.append(
            f"its {model.told.count} classes are num_class_embeds 0 to "
            f"{model.told.count - 1}, {model.told.count} is no class; DDPMPipeline "
            "itself gives none: call unet(x, t, class_labels)"
        )
    if tuple(trained.data_spec.size) != spec.size:
        height, width = trained.data_spec.size
        remarks.append(
            f"images are {spec.size[0]} x {spec.size[1]} there: {height} x {width} with a border"
        )
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": _VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    scheduler = write_scheduler(config, trained.sampling)
    files = {
        "model_index.json": json_bytes(index),
        "unet/config.json": json_bytes(_network(model)),
        f"unet/{_WEIGHTS}": save(tensors, metadata={"format": "pt"}),
        "scheduler/scheduler_config.json": json_bytes(
            {**scheduler, "_diffusers_version": _VERSION}
        ),
    }
    return files, remarks


def _network(model: DDPM) -> dict[str, Any]:
    """Return the configuration of the UNet2DModel."""
    config: DDPM.Config = model.config
    unet, spec = config.unet, model.spec
    assert isinstance(spec, Grid)
    middle = unet.middle_groups
    if middle is None and unet.scale_shift:  # where null would leave the normalisation out
        middle = config.groups
    attention = [
        bool(level.attentions) for level in model.get_submodule("unet.down_blocks").children()
    ]
    height, width = spec.size
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": _VERSION,
        "sample_size": height if height == width else [height, width],
        "in_channels": spec.channels,
        "out_channels": spec.channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": unet.frequency_shift,
        "flip_sin_to_cos": unet.cosines_first,
        "down_block_types": ["AttnDownBlock2D" if on else "DownBlock2D" for on in attention],
        "up_block_types": ["AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(attention)],
        "block_out_channels": [round(config.channels * m) for m in config.multipliers],
        "layers_per_block": config.blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": 0 if unet.padding == "end" else 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": config.dropout,
        "act_fn": "silu",
        "attention_head_dim": unet.head_width,
        "norm_num_groups": config.groups,
        "attn_norm_num_groups": middle or None,
        "norm_eps": unet.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if unet.scale_shift else "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": None if model.told is None else model.told.count + 1,
    }


def _their_name(ours: str) -> str:
    """Return the name of a weight in new files."""
    name = re.sub(r"^(down|up)(_blocks\.\d+)\.resample\.", r"\1\2.\1samplers.0.", ours)
    for own, other in _KEYS:
        name = name.replace(own, other)
    return name
