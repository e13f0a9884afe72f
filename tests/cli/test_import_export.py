"""`poiesis import` and `poiesis export`: from a run to a folder, back, and on with it."""

import json

import pytest

from poiesis.cli.main import main
from poiesis.runs import Run

QUICK = ["--train.grids", "0", "--train.threads", "1", "--quiet"]
SIZE = ["--model.channels", "8", "--model.multipliers", "1,1.5", "--model.groups", "4"]
SIZE += ["--model.attention", "4", "--model.unet.head-width", "4"]


@pytest.fixture(scope="module")
def ddpm_run(tmp_path_factory):
    """A small ddpm trained for two steps on digits."""
    path = tmp_path_factory.mktemp("runs") / "ddpm"
    command = ["train", "ddpm", "--data", "digits", "--train.steps", "2", "--out", str(path)]
    assert main([*command, *SIZE, "--train.validations", "0", *QUICK]) == 0
    return path


def test_a_run_goes_out_and_comes_back_and_is_used(poiesis, refused, ddpm_run, tmp_path):
    code, out, err = poiesis("export", ddpm_run, "--to", "diffusers", "--out", tmp_path / "out")
    assert code == 0, err
    assert "num_class_embeds 0 to 9, 10 is no class" in out
    assert f"diffusers folder: {tmp_path / 'out'}" in out
    config = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert config["block_out_channels"] == [8, 12] and config["attention_head_dim"] == 4
    run = tmp_path / "run"
    code, out, err = poiesis("import", tmp_path / "out", "--out", run, "--data", "digits")
    assert code == 0, err
    assert f"run: {run}" in out and "sampling.sampler = ancestral" in out
    quick = ["--sampling.sampler", "dpm-solver++", "--sampling.steps", "2", "--quiet"]
    code, out, err = poiesis("sample", run, "-n", "4", "-o", tmp_path / "new", *quick)
    assert code == 0 and len(list((tmp_path / "new").glob("0*.png"))) == 4, err
    same = tmp_path / "new" / "00002.png"
    assert poiesis("reproduce", same)[0] == 0
    assert "(default: ancestral)" in " ".join(poiesis("sample", run, "--help")[1].split())
    assert poiesis("inspect", run)[0] == 0
    Run(run).write_json("sampling.json", {"steps": 2})
    quick = ["-n", "16", "--likelihood-rows", "4", "--likelihood-samples", "2", "--quiet"]
    code, out, err = poiesis("evaluate", run, *quick)
    assert code == 0 and "fid" in out, err
    assert poiesis("report", run)[0] == 0
    # It has no training to go on with, but its weights are a start.
    assert "can't be resumed; start a new run from its weights" in refused("train", "--resume", run)
    tuned = ["--init", run, "--data", "digits", "--out", tmp_path / "tuned"]
    code, out, err = poiesis(
        "train", "--config", run / "config.yaml", *tuned, "--train.steps", "1", *QUICK
    )
    assert code == 0 and "fresh" not in err, err


def test_wrong_arguments_are_named(refused, ddpm_run, vae_run, tmp_path):
    assert "needs --out RUN" in refused("import", tmp_path)
    assert "needs --out FOLDER" in refused("export", ddpm_run)
    assert "needs FOLDER" in refused("import")
    line = refused("export", ddpm_run, "--to", "onnx", "--out", tmp_path / "x")
    assert "--to = 'onnx' is not one of: diffusers" in line
    line = refused("export", vae_run, "--out", tmp_path / "x")
    assert "holds a ddpm of images; this is a vae" in line
    assert "imported without" not in line and not any(tmp_path.iterdir())
    assert "did you mean 'import'?" in refused("imprt", tmp_path)
