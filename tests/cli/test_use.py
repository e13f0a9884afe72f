"""The verbs that use a trained run or data: sample, evaluate, inspect, reproduce, data, doctor."""

import json

import pytest
from PIL import Image

from poiesis.data.provenance import read_recipe


@pytest.fixture(scope="module")
def samples(vae_run, tmp_path_factory):
    from poiesis.cli.main import main

    out = tmp_path_factory.mktemp("samples") / "new"
    command = ["sample", str(vae_run), "-n", "3", "--seed", "5", "-o", str(out), "--threads", "1"]
    assert main([*command, "--sampling.temperature", "0.5"]) == 0
    return out


def test_sample_writes_files_with_recipes(samples):
    assert sorted(p.name for p in samples.iterdir()) == [
        *(f"{i:05d}.png" for i in range(3)),
        "grid.png",
    ]
    recipe = read_recipe(samples / "00002.png")
    assert recipe["seed"] == 5
    assert recipe["options"] == {"temperature": 0.5}
    with Image.open(samples / "00000.png") as picture:
        assert picture.size == (8, 8)


def test_inspect_shows_the_recipe(samples, poiesis):
    code, out, _ = poiesis("inspect", samples / "00001.png", "--json")
    assert code == 0
    assert json.loads(out) == read_recipe(samples / "00001.png")
    assert "seed: 5\n" in poiesis("inspect", samples / "00001.png")[1]


def test_reproduce_makes_the_same_bytes(samples, tmp_path, poiesis, refused):
    source, again = samples / "00001.png", tmp_path / "again.png"
    code, out, _ = poiesis("reproduce", source, "-o", again)
    assert code == 0 and "identical" in out
    assert again.read_bytes() == source.read_bytes()
    changed = tmp_path / "changed.png"
    changed.write_bytes(source.read_bytes() + b"\n")
    code, out, _ = poiesis("reproduce", changed)
    assert code == 1 and "DIFFERENT" in out
    assert "is the file itself" in refused("reproduce", source, "-o", source)
    assert "no recipe" in refused("reproduce", samples / "grid.png")


def test_inspect_sums_up_a_run_and_finds_damage(vae_run, tmp_path, poiesis):
    import shutil

    code, out, _ = poiesis("inspect", vae_run, "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["model"], told["data"], told["steps"]) == (
        "vae",
        "digits",
        {"done": 3, "planned": 3},
    )
    copy = tmp_path / "copy"
    shutil.copytree(vae_run, copy)
    broken = copy / "checkpoints" / "step-00000003"
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    code, out, _ = poiesis("inspect", copy, "--json")
    assert code == 1
    assert "model.safetensors" in json.loads(out)["damaged"][0]


def test_inspect_counts_a_checkpoint(vae_run, poiesis):
    from poiesis.models.trained import load

    code, out, _ = poiesis("inspect", vae_run / "checkpoints" / "step-00000003", "--json")
    told = json.loads(out)
    state = load(vae_run).model.state_dict()
    assert code == 0 and told["step"] == 3
    assert told["files"]["model.safetensors"]["values"] == sum(t.numel() for t in state.values())


def test_text_is_continued_stopped_and_streamed(text_run, tmp_path, poiesis):
    how = ["-n", 2, "--prompt", "the ", "--sampling.length", 30, "--seed", 3, "--stop", "o"]
    code, out, _ = poiesis("sample", text_run, *how, "-o", tmp_path / "a", "--stream")
    texts = [(tmp_path / "a" / f"0000{i}.txt").read_text() for i in range(2)]
    assert code == 0
    assert all(text.startswith("the ") and "o" not in text for text in texts)
    assert all(text in out for text in texts)
    recipe = json.loads((tmp_path / "a" / "00000.txt.json").read_text())
    assert recipe["stop"] == ["o"] and recipe["options"] == {"length": 30}
    # Streaming changes how a text is shown, not the text.
    _, out, _ = poiesis("sample", text_run, *how, "-o", tmp_path / "b")
    assert (tmp_path / "b" / "00000.txt").read_text() == texts[0]
    assert texts[0].strip("\n") in out


def test_mistakes_in_sampling_are_one_line(vae_run, text_run, tmp_path, refused):
    assert "'--sampling.temperature'?" in refused("sample", vae_run, "--sampling.tmperature", 1)
    assert "needs RUN" in refused("sample")
    assert "no run folder" in refused("sample", tmp_path / "none")
    assert "holds no run" in refused("sample", tmp_path)
    assert "trained without classes" in refused("sample", vae_run, "--class", 3)
    assert "takes no prompt" in refused("sample", vae_run, "--prompt", "x")
    assert "no checkpoint of step 99" in refused("sample", vae_run, "--checkpoint", 99)
    assert "--samples = 0" in refused("sample", vae_run, "-n", 0)
    assert "not among the" in refused("sample", text_run, "--prompt", "€")
    assert "temperature" in refused("sample", text_run, "--sampling.temperature", -1)


def test_evaluate_prints_numbers(vae_run, poiesis, refused):
    how = ["-n", 60, "--likelihood-rows", 20, "--threads", 1]
    code, out, _ = poiesis("evaluate", vae_run, *how, "--json")
    assert code == 0
    told = json.loads(out)
    names = {n["name"] for n in told["numbers"]}
    assert {"fid", "recall", "nll", "sampling_speed"} <= names
    assert json.loads((vae_run / "evaluation.json").read_text()) == told
    assert "'--extractor'?" in refused("evaluate", vae_run, "--extractr", "random")
    assert "did you mean 'digits'?" in refused("evaluate", vae_run, "--extractor", "digts")


def test_data_describes_and_previews(tmp_path, poiesis, refused):
    picture = tmp_path / "digits.png"
    code, out, _ = poiesis("data", "digits", "--json", "--preview", picture)
    told = json.loads(out)
    assert code == 0
    # scikit-learn's digits: 1,797 images of 8 px, 17 levels, 178 of them zeros.
    assert sum(told["splits"].values()) == 1797
    assert sum(part["0"] for part in told["classes"].values()) == 178
    assert told["spec"]["size"] == [8, 8]
    with Image.open(picture) as sheet:
        assert sheet.size[0] > 8 * 8
    assert "classes of train: 0 1" in poiesis("data", "digits")[1]
    assert "can't write" in refused("data", "digits", "--preview", tmp_path / "no" / "x.png")
    assert "name a .png" in refused("data", "digits", "--preview", tmp_path / "x.nothing")
    assert "--preview needs" in refused("data", "--preview", picture)
    assert "no file, folder" in refused("data", tmp_path / "none")


def test_data_lists_what_is_here(tmp_path, monkeypatch, poiesis):
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("POIESIS_DATA", str(tmp_path))
    _, out, _ = poiesis("data", "--json")
    told = json.loads(out)
    assert told["looked_in"][0] == str(tmp_path)
    assert told["sets"]["mnist"] == str(tmp_path / "mnist")
    assert told["sets"]["digits"] == "built in"
    assert "mnist" in poiesis("data")[1]


def test_doctor_tells_versions_and_speed(tmp_path, monkeypatch, poiesis):
    import torch

    monkeypatch.chdir(tmp_path)
    code, out, _ = poiesis("doctor", "--json")
    told = json.loads(out)
    assert code == 0, told["problems"]
    assert told["environment"]["versions"]["torch"] == torch.__version__
    assert told["gflops_fp32"]["cpu"] > 0.1
    assert told["optional"]["datasets"]["install"] == "pip install 'poiesis[hub]'"
    assert "versions" in poiesis("doctor")[1]


def test_doctor_finds_a_folder_it_cannot_write_to(tmp_path, monkeypatch):
    import tempfile

    from poiesis.cli.doctor import examine

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    problems = examine()["problems"]
    assert f"can't write to {tmp_path}: Permission denied; use --out FOLDER" in problems


def test_compare_and_report_refuse_mistakes(tmp_path, refused):
    assert "needs models" in refused("compare", "--budget", "1m")
    assert "choose one of" in refused("compare", "vae", "--budget", "1m", "--train.steps", 3)
    assert "did you mean 'vae'?" in refused("compare", "vae", "vea")
    assert "is not a duration" in refused("compare", "vae", "gan", "--budget", "long")
    assert "'--budget'?" in refused("compare", "vae", "gan", "--buget", "1m")
    assert "needs RUN" in refused("report")
    assert "--samples = 0" in refused("report", tmp_path, "-n", 0)


def test_compare_and_report_write_pages(tmp_path, poiesis):
    out = tmp_path / "comparison"
    code, printed, _ = poiesis(
        *("compare", "vae", "gan", "--data", "digits", "--data.limit", 300, "--train.steps", 3),
        *("--train.threads", 1, "--train.grids", 1, "-n", 60, "--out", out, "--quiet", "--json"),
    )
    told = json.loads(printed)
    assert code == 0
    assert {row["model"] for row in told["rows"]} == {"vae", "gan"}
    assert (out / "report.html").stat().st_size > 10_000
    page = tmp_path / "page.html"
    code, printed, _ = poiesis("report", out / "vae", "-o", page, "-n", 9)
    assert (code, printed) == (0, f"{page}\n")
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")


def test_skip_bad_leaves_broken_images_out_and_lists_them(tmp_path, capsys):
    from poiesis.cli.main import main

    for index in range(12):
        Image.new("L", (8, 8), index * 20).save(tmp_path / f"{index:02d}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    assert main(["data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "broken.png" in error and "--skip-bad" in error
    assert main(["data", str(tmp_path), "--skip-bad", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert len(described["skipped"]) == 1
    assert "broken.png" in described["skipped"][0] and "--skip-bad" not in described["skipped"][0]
