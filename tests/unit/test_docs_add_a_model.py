"""Follow docs/add-a-model.md to the letter: write the file, add the lines, train, sample."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract import test_contract as contract

from poiesis import registry
from poiesis.registry import Entry

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-a-model.md"


def blocks() -> dict[str, str]:
    text = PAGE.read_text(encoding="utf-8")
    return dict(re.findall(r"```python title=(\S+)\n(.*?)```", text, re.DOTALL))


@pytest.fixture
def ppca(tmp_path, monkeypatch) -> Entry:
    """Put the page's file into the family's package and its entry into the registry."""
    (tmp_path / "ppca.py").write_text(blocks()["ppca.py"])
    entry = eval(blocks()["entry"], {"Entry": Entry})
    package = importlib.import_module(entry.target.partition(":")[0].rpartition(".")[0])
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setitem(registry.MODELS, entry.name, entry)
    monkeypatch.chdir(tmp_path)
    yield entry
    sys.modules.pop(entry.target.partition(":")[0], None)


def test_the_page_has_every_step():
    assert set(blocks()) == {"ppca.py", "entry", "case", "use"}


def test_its_model_trains_samples_and_is_described(ppca):
    space: dict[str, Any] = {}
    exec(blocks()["use"], space)
    assert [picture.size for picture in space["pictures"]] == [(8, 8)] * 4
    told = registry.describe("ppca")
    assert told.doc.startswith("Probabilistic PCA")
    assert set(told.options) == {"latent_dim", "learning_rate", "batch_size"}
    assert "ppca" in [row["name"] for row in registry.list_models()]


def test_its_model_passes_the_contract(ppca, tmp_path, monkeypatch):
    case = eval(blocks()["case"], {"Case": contract.Case})
    for name, test in vars(contract).items():
        if not name.startswith("test_"):
            continue
        wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
        given = {"case": case, "name": "ppca", "tmp_path": tmp_path / name}
        given["monkeypatch"] = monkeypatch
        if wanted:
            test(**{key: given[key] for key in wanted})


def test_its_density_is_that_of_a_normal(ppca):
    cls = registry.model_class("ppca")
    config = cls.Config(latent_dim=3)
    model = cls(config, cls.view(config, contract.NATIVE["image"]))
    with torch.no_grad():
        model.log_sigma.fill_(-0.7)
        model.decoder.weight.normal_()
    x = torch.rand(5, 1, 8, 8) * 2 - 1
    weight = model.decoder.weight.double()
    covariance = weight @ weight.T + torch.eye(64).double() * (2 * model.log_sigma).exp().item()
    normal = torch.distributions.MultivariateNormal(model.decoder.bias.double(), covariance)
    expected = normal.log_prob(x.flatten(1).double())
    torch.testing.assert_close(model.log_prob(x).nats.double(), expected, rtol=1e-4, atol=1e-2)


def test_its_file_is_in_the_projects_style(tmp_path):
    (tmp_path / "ppca.py").write_text(blocks()["ppca.py"])
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(ROOT / "pyproject.toml")]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [*ruff, *command, *config, str(tmp_path / "ppca.py")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
