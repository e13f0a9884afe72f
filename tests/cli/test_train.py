import json

import pytest
import yaml

from poiesis.runs import Run

QUICK = ["--train.grids", "0", "--train.threads", "1", "--quiet"]


def test_train_says_where_the_run_is_and_what_is_next(tmp_path, poiesis):
    out = tmp_path / "run"
    code, printed, err = poiesis(
        *("train", "vae", "--data", "digits", "--model.latent_dim", "5", "--data.limit=200"),
        *("--train.steps", "2", "--seed", "7", "--out", out, *QUICK),
    )
    assert code == 0
    assert printed == f"run: {out}\n"
    assert f"poiesis sample {out}" in err and f"poiesis report {out}" in err
    config = Run.open(out).config()
    assert config["model"]["latent_dim"] == 5
    assert (config["train"]["steps"], config["seed"], config["data"]["limit"]) == (2, 7, 200)


def test_config_files_round_trip_and_options_override_them(vae_run, tmp_path, poiesis):
    again, longer = tmp_path / "again", tmp_path / "longer"
    file = vae_run / "config.yaml"
    assert poiesis("train", "--config", file, "--out", again, "--quiet")[0] == 0
    assert (again / "config.yaml").read_bytes() == file.read_bytes()
    changes = ["--train.epochs", "0.2", "--model.latent-dim", "4", "--seed", "3"]
    assert poiesis("train", "--config", file, "--out", longer, "--quiet", *changes)[0] == 0
    want = yaml.safe_load(file.read_text())
    want["train"] |= {"epochs": 0.2, "steps": None}
    want["model"]["latent_dim"] = 4
    want["seed"] = 3
    assert yaml.safe_load((longer / "config.yaml").read_text()) == want


def test_resume_goes_on(tmp_path, poiesis, refused):
    out = tmp_path / "run"
    poiesis("train", "vae", "--train.steps", "2", "--out", out, *QUICK)
    code, _, err = poiesis("train", "--resume", out, "--train.steps", "4", "--quiet")
    assert code == 0
    assert "train.steps changes from 2 to 4" in err
    assert Run.open(out).checkpoint().step == 4
    assert "only --train.* can" in refused("train", "--resume", out, "--model.latent-dim", "3")
    assert "'--train.steps'?" in refused("train", "--resume", out, "--train.stps", "3")
    code, _, err = poiesis("train", "--resume", out, "--train.steps", "3", "--quiet")
    assert code == 2
    assert "has done 4 already" in err.splitlines()[-1]


def test_init_starts_from_a_run(vae_run, tmp_path, poiesis):
    options = ["--train.steps", "1", "--out", tmp_path / "fine", *QUICK]
    code, _, err = poiesis("train", "vae", "--init", vae_run, "--model.latent-dim", "3", *options)
    assert code == 0
    warned = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1 and "tensors taken from" in warned[0]


def test_dry_run_counts_parameters_and_writes_nothing(tmp_path, monkeypatch, poiesis):
    monkeypatch.chdir(tmp_path)
    # The count of the recipe for 28 px: 1,486,352 and 533,505 (Keras' tutorial GAN).
    data = ["--data.resize", "28", "--data.limit", "64"]
    folder = tmp_path / "pictures"
    folder.mkdir()
    from PIL import Image

    for i in range(20):
        Image.new("L", (28, 28), i * 10).save(folder / f"{i}.png")
    command = ["train", "gan", "--preset", "tutorial", "--data", folder, *data]
    code, out, _ = poiesis(*command, "--train.steps", "10", "--dry-run", "--json", *QUICK)
    assert code == 0
    told = json.loads(out)
    assert told["parameters"] == {"generator": 1486352, "discriminator": 533505}
    assert told["parameters_total"] == 2019857
    assert told["steps"] == [10]
    assert told["seconds"] > 0
    assert told["config"]["model"]["latent_dim"] == 100
    assert [p.name for p in tmp_path.iterdir()] == ["pictures"]


def test_help_shows_the_preset_for_this_data(tmp_path, poiesis):
    _, out, _ = poiesis("train", "dcgan", "--help")
    for option in ("--model.generator-lr", "--data.skip-bad", "--train.budget", "--resume-anyway"):
        assert option in out
    text = " ".join(out.replace("│", " ").split())
    # The default shown is the preset's for these 8 px, not the Config's own.
    from poiesis.models.gans.dcgan import DCGAN
    from poiesis.spec import Grid

    preset = DCGAN.preset("default", Grid(channels=1, size=(8, 8), levels=17))
    assert preset.widths != DCGAN.Config().widths
    shown = " ".join(map(str, preset.widths))
    assert f"(default: {shown})" in text
    # Data that is not there is no reason to hide the help.
    code, _, _ = poiesis("train", "transformer", "--data", tmp_path / "none", "--help")
    assert code == 0


def test_mistakes_are_one_line(tmp_path, vae_run, refused):
    assert "(did you mean '--model.latent-dim'?)" in refused("train", "vae", "--model.latnt-dim", 3)
    assert "did you mean 'vae'?" in refused("train", "vaee")
    assert "needs a model: vae" in refused("train")
    assert "has no preset 'tutorail'" in refused("train", "vae", "--preset", "tutorail")
    assert "train.steps = 0 is outside" in refused("train", "vae", "--train.steps", 0)
    both = refused("train", "vae", "--train.steps", 1, "--train.budget", "1m")
    assert "choose one of" in both
    assert "is not a duration" in refused("train", "vae", "--train.budget", "soon")
    assert "'digits'?" in refused("train", "vae", "--data", "digit")
    assert "already holds a run" in refused("train", "vae", "--out", vae_run)
    assert "latent_dim" in refused("train", "vae", "--model.latent-dim", -1)
    assert "no run folder" in refused("train", "--resume", tmp_path / "none")
    assert "no configuration file" in refused("train", "--config", tmp_path / "none.yaml")
    assert "--dry-run" in refused("train", "vae", "--json", *QUICK)
    assert "unexpected argument 'gan'" in refused("train", "vae", "gan")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("train", "vae", "--data", empty)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: vae\nmodle: {}\n", "did you mean 'model'?"),
        ("name: vae\nmodel: {latnt_dim: 3}\n", "did you mean 'latent_dim'?"),
        ("name: vae\nmodel: 3\n", "model is no mapping"),
        ("name: [\n", "not valid YAML at line"),
        ("- 1\n", "holds no mapping"),
        ("name: vae\nseed: many\n", "seed = 'many' is not a int"),
        ("name: 3\n", "name = 3 is not a str"),
    ],
    ids=lambda text: repr(text)[:24],
)
def test_wrong_config_files_are_one_line(text, says, tmp_path, refused):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert says in refused("train", "--config", path)
