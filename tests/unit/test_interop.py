"""Folders of other toolkits: what is refused, in one line and without a trace; what is taken over.

Whether networks and samplers agree with diffusers itself is in tests/parity.
"""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from poiesis import config as configs
from poiesis import registry
from poiesis.cli.main import main
from poiesis.errors import CapabilityError, ConfigError, PoiesisError, RunError
from poiesis.interop import diffusers
from poiesis.interop.frame import export, import_
from poiesis.models.diffusion.ddpm import DDPM
from poiesis.models.trained import load
from poiesis.nn.unet import UNet, UNetOptions, sinusoidal_embedding
from poiesis.sampling import diffusion
from poiesis.spec import Classes, Grid

SPEC = Grid(channels=1, size=(8, 8), levels=17)
SIZES: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "groups": 4, "attention": (4,)}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"


def ddpm(classes=0, spec=SPEC, **options) -> DDPM:
    config = DDPM.Config(**{**SIZES, "conditional": bool(classes), **options})
    torch.manual_seed(0)
    model = DDPM(config, DDPM.view(config, spec), Classes(count=classes) if classes else None)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def folder_of(model: DDPM, folder: Path, spec=SPEC) -> Path:
    trained: Any = SimpleNamespace(
        model=model, data_spec=spec, name="ddpm", sampling=model.Sampling()
    )
    for name, data in diffusers.write(trained)[0].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    return folder_of(ddpm(), tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "in"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop(path: Path, key: str) -> None:
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))


def retensor(folder: Path, edit) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


# -- bad folders ----------------------------------------------------------------------------------


def to_bin(folder):
    (folder / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def nan(tensors):
    tensors["conv_in.bias"][0] = math.nan


def wrong_shape(tensors):
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :, :2].clone()


BAD = {
    "no folder": (lambda f: shutil.rmtree(f), "in: is not there"),
    "empty": (lambda f: (shutil.rmtree(f), f.mkdir()), "holds neither model_index.json"),
    "pipeline": (
        lambda f: change(f / "model_index.json", _class_name="StableDiffusionPipeline"),
        "the pipeline 'StableDiffusionPipeline' is not known; known: DDPMPipeline, DDIMPipeline",
    ),
    "component": (
        lambda f: change(f / "model_index.json", vqvae=["diffusers", "VQModel"]),
        "has the unknown option 'vqvae'",
    ),
    "no network": (lambda f: (f / CONFIG).unlink(), "unet/config.json: is not there"),
    "no json": (lambda f: (f / CONFIG).write_text("{"), "config.json: is not valid JSON"),
    "no mapping": (lambda f: (f / CONFIG).write_text("[]"), "holds no mapping"),
    "network": (
        lambda f: change(f / CONFIG, _class_name="UNet2DConditionModel"),
        "_class_name = 'UNet2DConditionModel' can't be taken over; known: UNet2DModel",
    ),
    "unknown option": (
        lambda f: change(f / CONFIG, norm_num_group=4),
        "has the unknown option 'norm_num_group' (did you mean 'norm_num_groups'?)",
    ),
    "activation": (
        lambda f: change(f / CONFIG, act_fn="gelu"),
        "act_fn = 'gelu' can't be taken over; known: silu, swish",
    ),
    "fourier": (
        lambda f: change(f / CONFIG, time_embedding_type="fourier"),
        "time_embedding_type = 'fourier' can't be taken over; known: positional",
    ),
    "centred": (
        lambda f: change(f / CONFIG, center_input_sample=True),
        "center_input_sample = True can't be taken over; known: false",
    ),
    "middle": (
        lambda f: change(f / CONFIG, add_attention=False),
        "add_attention = False can't be taken over; known: true",
    ),
    "block": (
        lambda f: change(f / CONFIG, down_block_types=["DownBlock2D", "ResnetDownsampleBlock2D"]),
        "down_block_types holds 'ResnetDownsampleBlock2D'; known: DownBlock2D, AttnDownBlock2D",
    ),
    "lopsided": (
        lambda f: change(f / CONFIG, up_block_types=["UpBlock2D", "UpBlock2D"]),
        "up_block_types does not mirror down_block_types",
    ),
    "entries": (
        lambda f: change(f / CONFIG, block_out_channels=[8]),
        "down_block_types has 2 entries, block_out_channels has 1",
    ),
    "variance": (
        lambda f: change(f / CONFIG, out_channels=2),
        "out_channels = 2 is not in_channels = 1",
    ),
    "kind": (
        lambda f: change(f / CONFIG, layers_per_block="two"),
        "layers_per_block = 'two' is not a whole number",
    ),
    "size": (lambda f: change(f / CONFIG, sample_size=9), "sample_size = 9x9 can't be halved"),
    "no size": (lambda f: drop(f / CONFIG, "sample_size"), "sample_size is null; name the data"),
    "groups": (lambda f: change(f / CONFIG, norm_num_groups=3), "not a multiple of groups = 3"),
    "heads": (
        lambda f: change(f / CONFIG, attention_head_dim=5),
        "unet.head_width = 5 does not divide the 16 channels",
    ),
    "vast": (
        lambda f: change(f / CONFIG, block_out_channels=[65536, 65536]),
        "'time_embedding.linear_1.weight' has the shape 32x8, not the 262144x65536",
    ),
    "no weights": (
        lambda f: (f / WEIGHTS).unlink(),
        "diffusion_pytorch_model.safetensors: is not there; fetch the whole folder again",
    ),
    "pickle": (to_bin, "diffusion_pytorch_model.bin: is a pickle, which is not read"),
    "cut off": (lambda f: cut(f / WEIGHTS), "is not a whole safetensors file"),
    "header cut off": (lambda f: cut(f / WEIGHTS, 0.001), "is not a whole safetensors file"),
    "text": (lambda f: (f / WEIGHTS).write_text("hello"), "is not a whole safetensors file"),
    "nan": (lambda f: retensor(f, nan), "'conv_in.bias' holds NaN or infinity"),
    "shape": (
        lambda f: retensor(f, wrong_shape),
        "its tensor 'conv_in.weight' has the shape 8x1x2x3, not the 8x1x3x3",
    ),
    "lacking": (
        lambda f: retensor(f, lambda t: t.pop("mid_block.attentions.0.to_out.0.bias")),
        "lack 'mid_block.attentions.0.to_out.0.bias'",
    ),
    "spare": (
        lambda f: retensor(f, lambda t: t.update({"down_blocks.7.x": torch.zeros(1)})),
        "its weights hold 'down_blocks.7.x', for which its configuration has no place",
    ),
    "twice": (
        lambda f: retensor(
            f, lambda t: t.update({"mid_block.attentions.0.query.bias": torch.zeros(16)})
        ),
        "twice",
    ),
    "no scheduler": (lambda f: (f / SCHEDULER).unlink(), "scheduler_config.json: is not there"),
    "scheduler": (
        lambda f: change(f / SCHEDULER, _class_name="PNDMScheduler"),
        "_class_name = 'PNDMScheduler' can't be taken over; known: DDPMScheduler, DDIMScheduler",
    ),
    "scheduler option": (
        lambda f: change(f / SCHEDULER, beta_stop=0.02),
        "has the unknown option 'beta_stop'",
    ),
    "noise": (
        lambda f: change(f / SCHEDULER, trained_betas=None, beta_schedule="sigmoid"),
        "beta_schedule = 'sigmoid' can't be taken over; known: linear, scaled_linear",
    ),
    "betas": (
        lambda f: change(f / SCHEDULER, trained_betas=[0.01] * 1000),
        "trained_betas are those of none of the schedules linear, scaled-linear, cosine, sigmoid",
    ),
    "learned": (
        lambda f: change(f / SCHEDULER, variance_type="learned_range"),
        "variance_type = 'learned_range' can't be taken over; known: fixed_small, fixed_large",
    ),
    "impossible": (
        lambda f: change(f / SCHEDULER, rescale_betas_zero_snr=True),
        "zero_snr = True needs prediction v or x0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_give_one_line_and_leave_nothing(name, folder, tmp_path, capsys):
    change(folder / SCHEDULER, prediction_type="epsilon")
    spoil, words = BAD[name]
    spoil(folder)
    assert main(["import", str(folder), "--out", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("poiesis: ")
    assert words in err
    assert {path.name for path in tmp_path.iterdir()} <= {"in"}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 64)
    | st.floats()
    | st.sampled_from([10**30, "linear", "epsilon", "AttnDownBlock2D", "v_prediction"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_is_taken_over_or_named(data, good, tmp_path_factory):
    file = data.draw(st.sampled_from([CONFIG, SCHEDULER, "model_index.json"]))
    values = json.loads((good / file).read_text())
    key = data.draw(st.sampled_from(sorted(values)))
    value = data.draw(JSON)
    folder = Path(shutil.copytree(good, tmp_path_factory.mktemp("any") / "in"))
    change(folder / file, **{key: value})
    try:
        found = diffusers.read(folder, None)
        cls = registry.model_class(found.model)
        configs.from_dict(cls.Config, found.options)
        import_(folder, folder.parent / "run")
    except PoiesisError as error:
        assert "\n" not in str(error)
        assert [path.name for path in folder.parent.iterdir()] == ["in"]


def test_out_must_be_free(folder, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("precious")
    for call in (import_, export):
        source = folder if call is import_ else import_(folder, tmp_path / "run").path
        with pytest.raises(RunError, match="is there already; choose another --out"):
            call(source, taken)
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    (tmp_path / "free").mkdir()
    assert load(import_(folder, tmp_path / "free").path).name == "ddpm"


def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    run = import_(folder, tmp_path / "run")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="No space left"):
        export(run.path, tmp_path / "out")
    monkeypatch.setattr("poiesis.runs._write", full)
    with pytest.raises(RunError, match="No space left"):
        import_(folder, tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "run"}


def test_models_that_a_format_cannot_hold_are_named(tmp_path):
    def exporting(model, spec=SPEC):
        with pytest.raises(CapabilityError) as error:
            folder_of(model, tmp_path, spec)
        return str(error.value)

    class Other(torch.nn.Module):
        Sampling = DDPM.Sampling
        spec = SPEC

    assert "holds a ddpm of images; this is a ddpm of grid" in exporting(Other())
    assert "whose first multiplier is 1, not 2" in exporting(ddpm(multipliers=(2, 2)))
    assert "whose network is a U-Net" in exporting(ddpm(network="dit"))
    assert "sees its estimate too" in exporting(ddpm(self_condition=True))
    bare = ddpm(unet=UNetOptions(middle_groups=0))
    assert "unet.middle_groups = 0" in exporting(bare)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"no format 'difusers' \(did you mean 'diffusers'\?\)"):
        export("runs/none", tmp_path / "out", to="difusers")


# -- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": "linear", "prediction": "eps", "timesteps": 200},
        {"schedule": "scaled-linear", "betas": (0.00085, 0.012), "zero_snr": True},
        {"schedule": "sigmoid", "prediction": "x0", "dropout": 0.1},
        {"multipliers": (1, 1.5), "blocks": 2, "attention": ()},
        {"unet": UNetOptions(scale_shift=True, head_width=4, padding="both")},
        {"unet": UNetOptions(scale_shift=True, middle_groups=0, norm_eps=1e-3)},
        {"unet": UNetOptions(middle_groups=2, cosines_first=True, frequency_shift=0)},
    ],
)
def test_there_and_back(options, tmp_path):
    model = ddpm(**options).eval()
    run = import_(folder_of(model, tmp_path / "in"), tmp_path / "run")
    again: Any = load(run.path).model
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0, 50, 199])
    torch.testing.assert_close(again.output(x, t, None), model.output(x, t, None))
    torch.testing.assert_close(again.schedule.alpha_bar, model.schedule.alpha_bar)
    for name in ("timesteps", "schedule", "zero_snr", "prediction", "attention", "multipliers"):
        assert getattr(again.config, name) == getattr(model.config, name), name
    export(run.path, tmp_path / "out")
    for path in (tmp_path / "in").rglob("*.*"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "in")).read_bytes() == (
            path.read_bytes()
        )


def test_with_its_data_classes_and_padding_come_back(tmp_path):
    spec = Grid(channels=1, size=(8, 8), levels=17)
    model = ddpm(classes=10, spec=spec)
    folder = folder_of(model, tmp_path / "in", spec)
    trained = load(import_(folder, tmp_path / "named", data="digits").path)
    assert trained.model.condition == trained.open_data().condition
    assert trained.model.condition is not None and trained.model.condition.count == 10
    rows = {"named": trained.model.get_parameter("unet.class_embedding.weight")}
    torch.testing.assert_close(rows["named"], model.unet.class_embedding.weight)  # type: ignore[union-attr]
    assert trained.codec.spec.levels == 17  # type: ignore[union-attr]
    # Without the data nobody knows that the last row is no class.
    alone = load(import_(folder, tmp_path / "alone").path)
    assert alone.model.condition is not None and alone.model.condition.count == 11
    with pytest.raises(RunError, match="imported without its data: import it again with --data"):
        alone.open_data()


def test_the_data_must_fit(folder, tmp_path, capsys):
    where = ["--out", str(tmp_path / "run"), "--data"]
    change(folder / CONFIG, sample_size=16)
    assert main(["import", str(folder), *where, "digits"]) == 2
    assert "is not that of the data, 8x8; read them with --data.resize 16" in (
        capsys.readouterr().err
    )
    assert main(["import", str(folder), *where, "moons.csv"]) == 2
    change(folder / CONFIG, sample_size=8, num_class_embeds=4)
    assert main(["import", str(folder), *where, "digits"]) == 2
    assert "num_class_embeds = 4, but the data has 10 classes" in capsys.readouterr().err


def test_sampling_options_are_the_runs_own_and_may_be_changed(folder, tmp_path):
    change(folder / SCHEDULER, variance_type="fixed_small", timestep_spacing="leading")
    run = import_(folder, tmp_path / "run")
    own = load(run.path)
    assert (own.sampling.sampler, own.sampling.variance) == ("ancestral", "small")
    changed = own.options(sampler="dpm-solver++", steps=3)
    assert (changed.sampler, changed.spacing) == ("dpm-solver++", "uniform")
    run.write_json("sampling.json", {"sampler": "ddim", "steps": 2})
    expected = own.sample_native(
        2, options=own.options(sampler="ddim", steps=2, spacing="trailing")
    )
    assert not torch.equal(load(run.path).sample_native(2), torch.zeros(2, 1, 8, 8))
    assert torch.equal(load(run.path).sample_native(2), expected)


def test_half_precision_weights_are_read_as_floats(folder, tmp_path):
    retensor(folder, lambda t: t.update({k: v.half() for k, v in t.items()}))
    model = load(import_(folder, tmp_path / "run").path).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# -- what the network gained ----------------------------------------------------------------------


def test_scale_and_shift_act_after_the_normalisation():
    unet = UNet(
        image_channels=1,
        channels=8,
        multipliers=(1,),
        blocks=1,
        attention=[False],
        groups=4,
        options=UNetOptions(scale_shift=True),
    )
    block: Any = unet.down_blocks[0].resnets[0]  # type: ignore[index]
    torch.nn.init.normal_(block.conv2.weight)
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 32)
    scale, shift = block.time_emb_proj(torch.nn.functional.silu(emb)).chunk(2, 1)
    h = block.norm2(block.conv1(torch.nn.functional.silu(block.norm1(x))))
    h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(block(x, emb), x + block.conv2(torch.nn.functional.silu(h)))


def test_embeddings_of_other_kinds():
    emb = sinusoidal_embedding(torch.tensor([7]), 8, cosines_first=True, frequency_shift=0)
    frequencies = [1, 0.1, 0.01, 0.001]
    expected = [math.cos(7 * f) for f in frequencies] + [math.sin(7 * f) for f in frequencies]
    assert emb[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_scaled_linear_schedule_is_latent_diffusions():
    schedule = diffusion.scaled_linear_schedule(1000, (0.0015, 0.0195))
    assert float(schedule.betas[0]) == pytest.approx(0.0015)
    assert float(schedule.betas[-1]) == pytest.approx(0.0195)
    roots = schedule.betas.sqrt()
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(999))
