import pytest

from poiesis.cli.main import main

QUICK = ["--train.grids", "0", "--train.threads", "1", "--quiet"]
"""Options that keep a training run of a few steps short."""


@pytest.fixture
def poiesis(capsys):
    """Return a function that runs a command: (exit code, stdout, stderr)."""

    def call(*args):
        capsys.readouterr()
        code = main([str(a) for a in args])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def refused(poiesis):
    """Return a function that runs a wrong command and returns its one line on stderr."""

    def call(*args):
        code, out, err = poiesis(*args)
        assert code == 2, (out, err)
        assert out == ""
        assert err.startswith("poiesis: ") and err.count("\n") == 1 and "Traceback" not in err
        return err

    return call


@pytest.fixture(scope="session")
def vae_run(tmp_path_factory):
    """A VAE trained for three steps on digits."""
    path = tmp_path_factory.mktemp("runs") / "vae"
    assert (
        main(["train", "vae", "--data", "digits", "--train.steps", "3", "--out", str(path), *QUICK])
        == 0
    )
    return path


@pytest.fixture(scope="session")
def text_run(tmp_path_factory):
    """A small transformer trained for two steps on a small text."""
    folder = tmp_path_factory.mktemp("text")
    text = folder / "lines.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    size = [
        "--model.width",
        "16",
        "--model.heads",
        "2",
        "--model.layers",
        "1",
        "--model.context",
        "16",
    ]
    command = ["train", "transformer", "--data", str(text), "--train.steps", "2", *size]
    assert main([*command, "--out", str(folder / "run"), *QUICK]) == 0
    return folder / "run"
