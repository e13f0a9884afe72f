"""A trained model: a run folder opened for use. `load(run).sample(64, seed=0)`.

The run alone is enough: it holds the configuration, codec, view and weights. Samples come as raw
data of the user's format (pictures, texts), and as files with their recipe inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from poiesis import config as configs
from poiesis import processes, registry
from poiesis.data import open_data
from poiesis.data.codecs import VideoCodec, codec_from_json
from poiesis.data.config import DataConfig
from poiesis.data.dataset import Codec, DataSet
from poiesis.data.views import View
from poiesis.errors import CapabilityError, ConfigError, RunError
from poiesis.machine import keep_memory
from poiesis.models import averages
from poiesis.models.base import GenerativeModel, hardware_bf16
from poiesis.rng import Noise
from poiesis.runs import Run
from poiesis.sampling.streaming import StopStrings, TextStream
from poiesis.spec import Attributes, Captions, Condition, Picture, Tokens, from_json

__all__ = ["Trained", "build", "load", "load_exact", "pick_device"]

Progress = Callable[[int], None]


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name; auto is a GPU if there is one. Raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = cuda, but no CUDA GPU is available here; use cpu or auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device = mps, but no Apple GPU is available here; use cpu or auto")
    if name == "cuda" and processes.size() > 1:
        return torch.device("cuda", processes.local_rank())
    return torch.device(name)


def build(
    cls: type[GenerativeModel],
    config: Any,
    spec: Any,
    condition: Condition | None,
    *,
    parts_folder: Path | None = None,
    device: torch.device | str = "cpu",
) -> GenerativeModel:
    """Construct a model for native data `spec`, loading its parts from the run's copies."""
    # A model is conditional where its configuration asks for it and the data has a condition.
    wanted = getattr(config, "conditional", False) or getattr(config, "classifier", False)
    use = condition if wanted else None
    if isinstance(use, Attributes) and not cls.mixes_classes:
        raise ConfigError(
            f"{cls.__name__} learns by class, not by attribute; use a GAN, or one class a row "
            "(--data.label)"
        )
    if isinstance(use, Captions) and not cls.reads_captions:
        raise ConfigError(
            f"{cls.__name__} learns by class, not by caption; use --model.conditional false, or a "
            "model that reads captions, e.g. flow-matching"
        )
    if isinstance(use, Picture) and not cls.reads_pictures:
        raise ConfigError(
            f"{cls.__name__} does not learn from pictures; use a diffusion model, or leave "
            "--data.pairs out"
        )
    names = cls.parts(config)
    if not names:
        return _laid_out(cls(config, cls.view(config, spec), use).to(device))
    if parts_folder is None:
        raise RunError(f"{cls.__name__} is built on other runs and needs a run folder")
    parts = {name: load(parts_folder / name, device=str(device)).model for name in names}
    view = cls.view_with(config, spec, parts)
    return _laid_out(cls(config, view, use, parts=parts).to(device))  # type: ignore[call-arg]


def _laid_out(model: GenerativeModel) -> GenerativeModel:
    """Put channels last in memory where convolutions in bf16 need it for their full speed."""
    if hardware_bf16(model.device) or model.device.type == "cuda":
        if any(weight.dim() == 5 for weight in model.parameters()):
            # Torch has another name for it in three dimensions, and takes one for all weights.
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            for weight in model.parameters():
                if weight.dim() in formats:
                    weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])
        else:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


class Trained:
    """A run opened for use; made by `load`."""

    def __init__(
        self,
        run: Run,
        name: str,
        model: GenerativeModel,
        data: dict[str, Any],
        config: dict[str, Any],
        model_hash: str,
        step: int,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        self.run = run
        self.name = name
        self.model = model
        self.config = config
        self.model_hash = model_hash
        self.step = step
        self.sampling = configs.from_dict(type(model).Sampling, sampling or {}, path="sampling.")
        self.data_name: str = data["name"]
        self.variant: str = data["variant"]
        self.data_spec = from_json(data["spec"])
        self.condition: Condition | None = from_json(data["condition"])
        self.codec: Codec = codec_from_json(data["codec"])
        self.view = View(self.data_spec, model.spec)

    def __repr__(self) -> str:
        return f"<{self.name} trained on {self.variant}, step {self.step}, {self.run.path}>"

    def open_data(self) -> DataSet:
        """Open the data set it was trained on, read and split the same way."""
        data = configs.from_dict(DataConfig, self.config["data"], path="data.")
        if not data.source:
            raise RunError(
                f"{str(self.run.path)!r} was imported without its data: import it again with --data"
            )
        return open_data(data.source, data)

    def options(self, **changes: Any) -> Any:
        """Return sampling options, the run's own but for the changes.

        Raises ConfigError for an unknown one, with a suggestion.
        """
        cls = type(self.model).Sampling
        return configs.from_dict(cls, changes, path="sampling.", base=self.sampling)

    def condition_of(self, label: str | int, n: int) -> Tensor:
        """Return the condition of n samples of a class, (n,), or with attributes, (n, k)."""
        if isinstance(self.model.condition, Attributes):
            return torch.tensor(self.model.condition.values(str(label))).expand(n, -1)
        return torch.full((n,), self.class_number(label))

    def write_as(self, format: str | None) -> None:
        """Write video as gif or mp4; None keeps the run's own format, that of its data.

        Raises ConfigError for other kinds of data, DataError where ffmpeg is missing.
        """
        if isinstance(self.codec, VideoCodec):
            self.codec = dataclasses.replace(self.codec, format=format or self.codec.format)
            self.codec.check_format()
        elif format is not None:
            known = f"this {self.name} writes {self.codec.suffix}"
            raise ConfigError(f"format = {format!r} is for video; {known}: leave it out")

    def class_number(self, name: str | int) -> int:
        """Return a class's number by name; raises CapabilityError if the model has none."""
        if isinstance(self.model.condition, Captions):
            raise CapabilityError(
                f"this {self.name} learned captions, no classes; say what to show with a prompt, "
                f"e.g. {self.model.condition.examples[0]!r}"
            )
        if isinstance(self.model.condition, Picture):
            raise CapabilityError(
                f"this {self.name} learned images given pictures, no classes; give it pictures "
                "with poiesis translate or upscale"
            )
        if self.model.condition is None:
            raise CapabilityError(
                f"this {self.name} was trained without classes; train one with "
                "--model.conditional true on data that has classes"
            )
        if isinstance(self.model.condition, Attributes):
            raise CapabilityError(
                f"this {self.name} learned attributes, not classes: "
                f"{', '.join(self.model.condition.names)}"
            )
        return self.model.condition.index(str(name))

    def caption(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a caption; raises CapabilityError if the model has none, SpecError
        for words that it never saw."""
        if not isinstance(self.model.condition, Captions):
            raise CapabilityError(
                f"this {self.name} was trained without captions, so it takes no prompt; train a "
                "diffusion model on data that has captions, e.g. shapes"
            )
        return self.model.condition.index(text)

    def asked(
        self, n: int, label: str | int | None = None, prompt: str | None = None
    ) -> Tensor | None:
        """Return the condition of n samples of a class or a caption; None without either."""
        if prompt is not None:
            return torch.tensor([self.caption(prompt)] * n)
        return None if label is None else self.condition_of(label, n)

    def sample_native(
        self,
        n: int,
        *,
        seed: int = 0,
        label: str | int | None = None,
        prompt: str | None = None,
        condition: Tensor | None = None,
        options: Any = None,
        batch_size: int = 64,
        first: int = 0,
        progress: Progress | None = None,
    ) -> Tensor:
        """Return n samples as native tensors: uint8 levels (n, c, h, w), of video (n, c, t, h, w),
        int64 tokens (n, t) or float32 vectors (n, d) and audio (n, 1, t).

        label: a class (or attributes), prompt: a caption for all; condition: one for each sample.
        """
        asked = self.asked(n, label, prompt)
        condition = condition if asked is None else asked
        drawn = self.model.sample(
            n,
            seed=seed,
            condition=condition,
            options=self.sampling if options is None else options,
            batch_size=batch_size,
            first=first,
            progress=progress,
        )
        return self.view.invert(drawn)

    def sample(
        self,
        n: int = 1,
        *,
        seed: int = 0,
        label: str | int | None = None,
        prompt: str | None = None,
        stop: Sequence[str] = (),
        on_text: Callable[[int, str], None] | None = None,
        batch_size: int = 64,
        first: int = 0,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Any]:
        """Return n raw samples: pictures (PIL), texts; NumPy rows of numbers, int16 sound, uint8
        frames (t, h, w, c).

        Sample i depends on (seed, first + i) alone. label: a class by name or number. prompt: a
        caption of what to show, for a model that learned captions. prompt, stop,
        on_text(sample, piece): for text, what to continue, where to stop, and who hears each piece
        at once. options: the model's sampling options by name.
        """
        configs.check("n", n, low=1)
        configs.check("batch_size", batch_size, low=1)
        chosen = self.options(**options)
        continued = prompt is not None and not isinstance(self.model.condition, Captions)
        if not continued and not stop and on_text is None:
            native = self.sample_native(
                n,
                seed=seed,
                label=label,
                prompt=prompt,
                options=chosen,
                batch_size=batch_size,
                first=first,
                progress=progress,
            )
            return [self.codec.decode(row) for row in native]
        texts: list[Any] = []
        for start in range(first, first + n, batch_size):
            count = min(batch_size, first + n - start)
            noise = Noise(seed, range(start, start + count), device=self.model.device)
            texts += self._continue(prompt, noise, chosen, stop, on_text, start - first)
            if progress is not None:
                progress(count)
        return texts

    def _continue(
        self,
        prompt: str | None,
        noise: Noise,
        options: Any,
        stop: Sequence[str],
        on_text: Callable[[int, str], None] | None,
        offset: int,
    ) -> list[str]:
        generate = getattr(self.model, "generate", None)
        spec = self.data_spec
        if generate is None or not (isinstance(spec, Tokens) and spec.stream):
            raise CapabilityError(
                f"this {self.name} on {self.data_name} takes no prompt and stops at no text; a "
                "transformer trained on text does, a diffusion model trained on captions draws one"
            )
        count = len(noise)
        prompt = prompt or "\n"
        tokens = self.codec.encode(prompt).tolist()

        def decode(ids: Sequence[int]) -> str:
            return self.codec.decode(torch.tensor(ids, dtype=torch.long))

        streams = [StopStrings(stop, decode) if stop else TextStream(decode) for _ in range(count)]
        pieces: list[list[str]] = [[] for _ in range(count)]

        def take(row: int, piece: str) -> None:
            pieces[row].append(piece)
            if on_text is not None and piece:
                on_text(offset + row, piece)

        def on_token(row: int, token: int) -> None:
            take(row, streams[row].push(token))

        def ended(row: int, token: int) -> bool:
            return bool(getattr(streams[row], "stopped", False))

        generate([tokens] * count, noise, options, stop=ended, on_token=on_token)
        for row, stream in enumerate(streams):
            take(row, stream.flush())
        return [prompt + "".join(parts) for parts in pieces]

    def class_names(
        self, n: int, label: str | int | None = None, prompt: str | None = None
    ) -> list[str] | None:
        """Return the classes, attributes or captions of the first n samples; None without any."""
        condition = self.model.condition
        if condition is None or isinstance(condition, Picture):
            return None
        if prompt is not None:
            return [prompt] * n
        drawn = self.model.default_condition(0, n) if label is None else self.condition_of(label, n)
        assert drawn is not None
        numbers = drawn.tolist()
        if isinstance(condition, Captions):
            return [condition.text(tokens) for tokens in numbers]
        if isinstance(condition, Attributes):
            return [condition.describe(values) for values in numbers]
        return [condition.names[number] if condition.names else str(number) for number in numbers]

    def recipe(self, index: int | None, first: int, count: int, **how: Any) -> dict[str, Any]:
        """Return what makes sample `index` again: model hash, config, seed, options, version.

        index: None for all the samples of the batch in one file.
        """
        from poiesis import __version__

        return {
            "poiesis": __version__,
            "model": self.name,
            "run": str(self.run.path),
            "model_hash": self.model_hash,
            "step": self.step,
            "data": self.variant,
            "config": self.config,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "index": index,
            "batch": [first, count],
            **how,
        }


def load(
    run: str | Path,
    *,
    checkpoint: str = "auto",
    weights: Literal["average", "raw"] = "average",
    device: str = "auto",
) -> Trained:
    """Open a trained run; raises RunError if there is none or its files are damaged.

    checkpoint: auto (the best by held-out data where training watched one, else the latest),
    latest, best, a step number, or an average of another length, "ema:0.1" or "ema:0.1@STEP", of a
    run that keeps snapshots (`poiesis.models.averages`). weights: the moving average where the
    model has one, or raw.
    """
    keep_memory()
    folder = Run.open(run)
    config = folder.config()
    data = folder.read_json("data.json")
    if data is None or "name" not in config:
        raise RunError(f"{str(folder.path)!r} is no complete run (no data.json); train it again")
    cls = registry.model_class(config["name"])
    model_config = configs.from_dict(cls.Config, config["model"], path="model.")
    model = build(
        cls,
        model_config,
        from_json(data["spec"]),
        from_json(data["condition"]),
        parts_folder=folder.path / "parts",
        device=pick_device(device),
    )
    tensors, model_hash, step = _weights(folder, checkpoint, weights, model)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        where = f"{str(folder.path)!r} at step {step}"
        raise RunError(f"the weights in {where} don't fit the model: {reason}") from None
    model.eval().requires_grad_(False)
    sampling = folder.read_json("sampling.json")
    return Trained(folder, config["name"], model, data, config, model_hash, step, sampling)


def _weights(
    run: Run, checkpoint: str, weights: str, model: GenerativeModel
) -> tuple[dict[str, Tensor], str, int]:
    """Return the tensors that `load` asks for, their hash and their step."""
    asked = averages.parse(checkpoint)
    if asked is not None and weights == "raw":
        raise ConfigError(f"{checkpoint!r} is an average: leave out weights = raw")
    if asked is not None:
        # What was not averaged is that of the end, whichever step the average is of.
        beside = run.checkpoint("latest")
        buffers = [name for name, _ in model.named_buffers()]
        found = averages.average(run, *asked, base=beside.hashes[_RAW], buffers=buffers)
        return {**beside.tensors(_RAW), **found.tensors}, found.hash, found.step
    if checkpoint == "auto":
        checkpoint = "best" if run.has_checkpoint("best") else "latest"
    opened = run.checkpoint(checkpoint)
    tensors, key = opened.tensors(_RAW), _RAW
    average = opened.tensors("ema.safetensors") if weights == "average" else {}
    if average:
        tensors, key = {**tensors, **average}, "ema.safetensors"
    return tensors, opened.hashes[key], opened.step


_RAW = "model.safetensors"


def load_exact(
    run: str | Path,
    model_hash: str,
    step: int,
    *,
    file: str | Path,
    weights: Literal["average", "raw"] = "average",
    device: str = "auto",
) -> Trained:
    """Open the run that made `file` with the very weights of a hash; raises RunError."""
    if not Path(run).exists():
        raise RunError(f"the run {str(run)!r} of {str(file)!r} is not there; say --run FOLDER")
    folder = Run.open(run)
    average = model_hash.rpartition(":")[0]  # "ema:LENGTH", of such a one
    for checkpoint in (f"{average}@{step}",) if average else (str(step), "best", "latest"):
        try:
            found = load(folder.path, checkpoint=checkpoint, weights=weights, device=device)
        except RunError:
            continue
        if found.model_hash == model_hash:
            return found
    raise RunError(
        f"{str(run)!r} no longer holds the model of {str(file)!r} (hash "
        f"{model_hash[:12]}, step {step}); its training went on or it was replaced"
    )
