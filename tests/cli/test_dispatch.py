import json
import subprocess
import sys
import time

import pytest

import poiesis.cli.models
from poiesis import __version__, registry
from poiesis.cli.main import VERBS, main

LIGHT = """
import sys, contextlib, io
from poiesis.cli.main import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    assert main({args!r}) == 0
assert out.getvalue()
heavy = {{"torch", "numpy", "scipy", "sklearn", "PIL"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["models"], ["models", "--json"], ["models", "vae"]]
    + [["completion", shell] for shell in ("bash", "zsh", "fish")],
    ids=" ".join,
)
def test_light_commands_import_no_torch(args):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(args=args)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("args", [["--help"], ["models"]], ids=" ".join)
def test_light_commands_start_fast(args):
    def seconds(command):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    command = [sys.executable, "-m", "poiesis", *args]
    assert min(seconds(command) for _ in range(5)) < 0.4


def test_python_m_poiesis():
    done = subprocess.run(
        [sys.executable, "-m", "poiesis", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"poiesis {__version__}\n"


def test_help_names_every_verb(poiesis):
    code, out, _ = poiesis("--help")
    assert code == 0
    assert all(f"  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_examples(verb, poiesis):
    code, out, err = poiesis(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: poiesis {verb}")
    examples = out[out.index("Examples:") :].splitlines()[1:]
    assert len(examples) >= 2
    assert all("poiesis" in line for line in examples)


def test_wrong_verb_is_corrected(refused):
    assert "did you mean 'train'?" in refused("trian")
    assert "verbs: models, train" in refused("qqqq")


def test_models_lists_every_model_under_its_family(poiesis):
    code, out, _ = poiesis("models")
    assert code == 0
    family = None
    listed = {}
    for line in out.splitlines():
        if line and not line.startswith((" ", "poiesis")):
            family = line
        elif line.startswith("  "):
            listed[line.split()[0]] = family
    assert listed == {name: registry.entry(name).family for name in registry.names()}


def test_models_json_is_one_document(poiesis):
    _, out, err = poiesis("models", "--json")
    assert [m["name"] for m in json.loads(out)] == registry.names()
    assert err == ""


@pytest.mark.parametrize("name", registry.names())
def test_a_model_is_explained(name, poiesis):
    _, out, _ = poiesis("models", name)
    described = registry.describe(name)
    for preset in described.presets:
        assert f"\n  {preset}" in out
    for option in described.options:
        assert f"--model.{option.replace('_', '-')}  (default: " in out
    _, out, _ = poiesis("models", name, "--json")
    told = json.loads(out)
    assert set(told["options"]) == set(described.options)
    assert told["name"] == name


def test_wrong_model_and_option_are_corrected(refused):
    assert "did you mean 'dcgan'?" in refused("models", "dcgam")
    assert "did you mean '--json'?" in refused("models", "--jsn")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "out of"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), 2, "x.png: No such file"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_that_are_no_bugs_are_one_line(error, code, says, monkeypatch, poiesis):
    def fail(args):
        raise error

    monkeypatch.setattr(poiesis_models(), "run", fail)
    got, _, err = poiesis("models")
    assert got == code
    assert says in err and err.count("\n") == 1


def test_a_bug_says_so_with_its_traceback(monkeypatch, poiesis):
    def fail(args):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(poiesis_models(), "run", fail)
    code, _, err = poiesis("models", "vae")
    assert code == 70
    assert "this is a bug in poiesis" in err and "(poiesis models vae)" in err
    assert "ZeroDivisionError" in err


def poiesis_models():
    return poiesis.cli.models


def test_a_closed_pipe_is_quiet():
    done = subprocess.run(
        f"{sys.executable} -m poiesis models vae | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_nothing_to_do_shows_the_help(capsys):
    assert main([]) == 2
    assert "usage: poiesis" in capsys.readouterr().out
