import shutil
import subprocess

import pytest

from poiesis import registry
from poiesis.cli.main import VERBS

COMPLETE = """
source /dev/stdin
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_poiesis
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def complete():
    """Return a function from typed words to bash's proposals for the last one."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    import contextlib
    import io

    from poiesis.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["completion", "bash"]) == 0

    def call(*words):
        done = subprocess.run(
            [bash, "-c", COMPLETE, "bash", "poiesis", *words],
            input=out.getvalue(),
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        return set(done.stdout.split())

    return call


def test_bash_proposes_what_fits(complete):
    assert complete("") == {*VERBS, "--help", "--version"}
    assert complete("rep") == {"report", "reproduce"}
    assert complete("train", "") == set(registry.names())
    assert complete("train", "vae", "--model.lat") == {"--model.latent-dim"}
    assert complete("train", "gan", "--model.latent-d") == {"--model.latent-dim"}
    assert "--model.multipliers" not in complete("train", "vae", "--model.")
    assert complete("train", "vae", "--train.bud") == {"--train.budget"}
    assert complete("train", "vae", "--data", "fash") == {"fashion-mnist"}
    assert complete("evaluate", "runs", "--ext") == {"--extractor"}
    assert complete("sample", "runs", "--sampling.guidance-r") == {"--sampling.guidance-rescale"}
    assert complete("compare", "vae", "dd") == {"ddpm"}
    assert complete("completion", "") == {"bash", "zsh", "fish"}
    assert complete("sample", "r") == set()  # then bash proposes files


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_whole(shell, poiesis):
    _, out, _ = poiesis("completion", shell)
    for word in (*VERBS, *registry.names(), "model.latent-dim", "sampling.temperature"):
        assert word in out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=out, text=True, check=True)


def test_wrong_shell_is_corrected(refused):
    assert "did you mean 'fish'?" in refused("completion", "fsh")
