"""Captions on the command line: data, train, sample --prompt, evaluate, inspect, reproduce."""

import json

import pytest
from PIL import Image

from poiesis.cli.main import main
from poiesis.data.provenance import read_recipe

QUICK = ["--train.grids", "0", "--train.threads", "1", "--quiet"]
SIZE = ["--model.channels", "8", "--model.multipliers", "1,1,1", "--model.groups", "4"]
STEPS = ["--sampling.steps", "2"]


@pytest.fixture(scope="module")
def shapes_run(tmp_path_factory):
    """A flow-matching model trained for two steps on shapes."""
    path = tmp_path_factory.mktemp("runs") / "shapes"
    how = ["--data", "shapes", "--data.limit", "100", "--train.steps", "2", *SIZE]
    assert main(["train", "flow-matching", *how, "--out", str(path), *QUICK]) == 0
    return path


def test_data_tells_words_captions_and_what_is_held_out(tmp_path, poiesis):
    code, out, _ = poiesis("data", "shapes", "--preview", tmp_path / "a.png")
    assert code == 0
    assert "grid 3x32x32" in out and "captions of up to 10 words, such as:" in out
    assert "words: a, above, below, black, blue" in out
    assert "held out of training: a yellow triangle" in out
    assert Image.open(tmp_path / "a.png").width > 8 * 32
    told = json.loads(poiesis("data", "shapes", "--json")[1])
    assert told["classes"] is None and len(told["captions"]["words"]) == 18


def test_a_prompt_is_drawn_recorded_and_reproduced(shapes_run, tmp_path, poiesis):
    how = ["sample", shapes_run, "-n", 3, *STEPS]
    prompt = "a red circle left of a blue square"
    assert poiesis(*how, "--prompt", prompt, "-o", tmp_path / "a")[0] == 0
    one = tmp_path / "a" / "00001.png"
    assert Image.open(one).size == (32, 32)
    recipe = read_recipe(one)
    assert recipe["prompt"] == recipe["caption"] == prompt
    assert poiesis("reproduce", one, "-o", tmp_path / "b.png")[0] == 0
    assert (tmp_path / "b.png").read_bytes() == one.read_bytes()
    # Without a prompt: the captions that the run keeps, each told in its file.
    assert poiesis(*how, "-o", tmp_path / "c")[0] == 0
    kept = json.loads((shapes_run / "data.json").read_text())["condition"]["examples"]
    told = [read_recipe(tmp_path / "c" / f"0000{i}.png")["caption"] for i in range(3)]
    assert told == kept[:3]
    # In shards too.
    prompted = [*how, "--prompt", prompt, "--shard-size", 2, "-o", tmp_path / "d"]
    assert poiesis(*prompted)[0] == 0
    assert len(list((tmp_path / "d").glob("shard-*.zip"))) == 2


def test_mistakes_in_prompts_are_one_line(shapes_run, vae_run, refused):
    how = ["sample", shapes_run, "-n", 1]
    assert "'circel' (did you mean 'circle'?)" in refused(*how, "--prompt", "a red circel")
    long = "a red circle " * 4
    assert "has 12 words; this model takes 10" in refused(*how, "--prompt", long)
    assert "learned captions, no classes" in refused(*how, "--class", "3")
    assert "stops at no text" in refused(*how, "--prompt", "a red circle", "--stop", "x")
    assert "takes no prompt" in refused("sample", vae_run, "--prompt", "a red circle")
    out = shapes_run / "samples" / "seed-0"
    assert not out.exists()
    refusal = refused("train", "cvae", "--data", "shapes", "--data.limit", 20)
    assert "learns by class, not by caption" in refusal and "flow-matching" in refusal


def test_evaluation_draws_held_out_captions(shapes_run, poiesis):
    how = ["-n", 12, "--likelihood-rows", 0, "--threads", 1, "--json"]
    code, out, _ = poiesis("evaluate", shapes_run, *how)
    assert code == 0
    numbers = {number["name"]: number for number in json.loads(out)["numbers"]}
    found = numbers["caption_agreement"]
    # After two steps nothing is a shape.
    assert found["value"] == 0 and found["passport"]["split"] == "test"
    assert found["passport"]["n_generated"] == 12
