"""The tutorials keep to the code: commands parse, wrong ones give the line shown, Python imports.

In ```console blocks a line ``$ poiesis …`` is a command, what follows is what it prints, ``…`` is
what was left out. Numbers are not compared where a run is involved: the run here is shorter.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from PIL import Image

import poiesis
from poiesis import registry
from poiesis.cli import (
    compare,
    compress,
    data,
    decompress,
    denoise,
    detect,
    doctor,
    edit,
    evaluate,
    latent,
    reduce,
    reproduce,
    sample,
    train,
    translate,
)
from poiesis.cli import inspect as inspect_verb
from poiesis.cli import report as report_verb
from poiesis.cli.main import VERBS, main
from poiesis.cli.options import Nested, options, scan
from poiesis.evaluation.protocol import EvaluationConfig
from poiesis.training.config import TrainConfig

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "tutorials").glob("*.md"))
HOME = "home"
STEPS = "3"


class Command(NamedTuple):
    page: str
    args: list[str]
    output: list[str]

    @property
    def text(self) -> str:
        return shlex.join(self.args)

    @property
    def wrong(self) -> bool:
        """Whether the page shows it as a mistake."""
        return bool(self.output) and self.output[0].startswith("poiesis: ")


def blocks(page: Path, language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> list[Command]:
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, *output = part.splitlines()
                words = shlex.split(line)
                if words[0] == "poiesis":
                    words = words[: words.index("&&")] if "&&" in words else words
                    found.append(Command(page.name, words[1:], output))
    return found


COMMANDS = commands()
NAMES = [f"{c.page}: {c.text}" for c in COMMANDS]


def test_every_verb_has_a_page_and_the_index_lists_it():
    assert {p.stem for p in PAGES} == set(VERBS) - {"completion"}
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in [*PAGES, *(p for p in DOCS.glob("*.md") if p.stem != "index")]:
        assert f"({page.relative_to(DOCS)})" in index


@pytest.mark.parametrize("page", [*PAGES, DOCS / "index.md"], ids=lambda p: p.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (page.parent / link).is_file(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_each_page_has_an_example_a_mistake_and_what_next(page):
    shown = [c for c in COMMANDS if c.page == page.name and c.args[0] == page.stem]
    assert any(not c.wrong for c in shown) and any(c.wrong for c in shown)
    assert blocks(page, "python")
    titles = re.findall(r"^## (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"In Python", "Common mistakes", "Next"} <= set(titles)


# -- commands parse --------------------------------------------------------------------------------


def accepted(args: list[str]) -> tuple[list[Any], dict[str, str]]:
    """Return the options a command may have, and their other spellings."""
    verb = args[0]
    if verb == "train":
        if "--resume" in args:
            return options(train._ResumeArgs), train.ALIASES
        named = [a for a in args[1:2] if not a.startswith("-")]
        # --config names it; the tutorials' is a VAE, but for the one of an imported run
        model = named[0] if named else "ddpm" if any("cifar" in a for a in args) else "vae"
        cls = train._arguments_class(registry.model_class(model).Config)
        return options(cls), train.ALIASES
    if verb == "sample":
        found = options(sample.SampleArgs)
        for name in registry.names():
            fields = [("sampling", Nested[registry.model_class(name).Sampling])]
            found += options(dataclasses.make_dataclass("Sampling", fields))
        return found, {}
    if verb == "evaluate":
        return options(evaluate.EvaluateArgs) + options(EvaluationConfig), evaluate.ALIASES
    if verb == "compare":
        return options(compare.CompareArgs), compare.ALIASES
    if verb == "latent":
        return options(latent.MODES[args[2]].args), {}
    classes = {
        "data": data.DataArgs,
        "doctor": doctor.DoctorArgs,
        "inspect": inspect_verb.InspectArgs,
        "report": report_verb.ReportArgs,
        "reproduce": reproduce.ReproduceArgs,
        "reduce": reduce.ReduceArgs,
        "denoise": denoise.DenoiseArgs,
        "detect": detect.DetectArgs,
        "edit": edit.EditArgs,
        "inpaint": edit.InpaintArgs,
        "translate": translate.TranslateArgs,
        "upscale": translate.UpscaleArgs,
        "compress": compress.CompressArgs,
        "decompress": decompress.DecompressArgs,
    }
    if verb in ("import", "export"):  # the first of which is no name that a statement can import
        module = importlib.import_module(f"poiesis.cli.{verb}")
        return options(getattr(module, f"{verb.title()}Args")), getattr(module, "ALIASES", {})
    return options(classes[verb]), {}


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.wrong], ids=lambda c: c.text)
def test_commands_parse(command):
    verb, *rest = command.args
    assert verb in VERBS
    if verb == "models":
        assert all(a == "--json" or a in registry.names() for a in rest)
        return
    known, aliases = accepted(command.args)
    positionals, values = scan(rest, known, prog=f"poiesis {verb}", aliases=aliases)
    if verb == "train" and positionals and "--preset" in values:
        assert values["--preset"][0] in registry.describe(positionals[0]).presets
    if verb in ("train", "compare"):
        for name in positionals:
            registry.entry(name.partition(":")[0])


# -- commands run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the tutorials' commands stand on: a run, its samples, bad files."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / HOME).mkdir()
    (folder / "empty").mkdir()
    (folder / "mixed").mkdir()
    for i in range(12):
        size = (32, 24) if i == 5 else (32, 32)
        Image.new("L", size, 20 * i).save(folder / "mixed" / f"{i:04d}.png")
    (folder / "captioned").mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(folder / "captioned" / f"{i:04d}.png")
    (folder / "captioned" / "metadata.csv").write_text("file_name,text\n0000.png,a\n0001.png,b\n")
    (folder / "bad.txt").write_bytes(b"hello \xff\xfe world\n" * 500)
    rows = [f"{h / 10},{h % 7},{('oak', 'ash')[h % 2]}" for h in range(60)]
    (folder / "plants.csv").write_text("\n".join(["height,leaves,species", *rows]))
    rows[5] = ",3,oak"
    (folder / "holes.csv").write_text("\n".join(["height,leaves,species", *rows]))
    (folder / "book.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        how = ["--train.steps", STEPS, "--train.threads", "1", "--train.grids", "0", "--quiet"]
        assert main(["train", "vae", "--data", "digits", "--out", "runs/first", *how]) == 0
        small = ["--model.channels", "8", "--model.multipliers", "1,1,1", "--data.limit", "20"]
        drawn = ["train", "flow-matching", "--data", "shapes", *small, "--out", "runs/shapes"]
        assert main([*drawn, *how]) == 0
        where = ["--seed", "0", "-o", "new-digits", "--threads", "1", "--quiet"]
        assert main(["sample", "runs/first", "-n", "4", *where]) == 0
    return folder


@pytest.fixture
def at_desk(desk, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.setenv("HOME", str(desk / HOME))
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("POIESIS_DATA", "POIESIS_INCEPTION"):
        monkeypatch.delenv(name, raising=False)
    return desk


def plain(line: str, desk: Path, *, numbers: bool) -> str:
    """Return a line with blanks as one and ~ for home; without numbers and hashes if asked."""
    line = " ".join(line.replace(str(desk / HOME), "~").split())
    if numbers:
        return line
    line = re.sub(r"\b[0-9a-f]{64}\b", "HASH", line)
    return re.sub(r"\d+([.,]\d+)*", "N", line)


def optional_package(line: str) -> str | None:
    found = re.search(r"needs the package '(\w+)'", line)
    return found and found[1]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.wrong], ids=lambda c: c.text)
def test_mistakes_give_the_line_shown(command, at_desk, capsys):
    package = optional_package(command.output[0])
    if package and importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed here")
    assert main(command.args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    numbers = not command.text.startswith(("sample runs", "train vae --data book.txt"))
    shown, *more = [plain(line, at_desk, numbers=numbers) for line in command.output]
    assert more == []
    printed = plain(err, at_desk, numbers=numbers)
    # A run of three steps may list other checkpoints.
    assert re.sub("N(, N)+", "N", printed) == re.sub("N(, N)+", "N", shown)


CHEAP = (
    "models",
    "data digits",
    "data shapes",
    "doctor",
    "inspect new-digits",
    "reproduce new-digits/00003.png",
)


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if not c.wrong and c.text.startswith(CHEAP) and "--run" not in c.args]
    + [c for c in COMMANDS if c.args in (["data"], ["inspect", "runs/first"])],
    ids=lambda c: c.text,
)
def test_cheap_commands_print_what_is_shown(command, at_desk, capsys):
    code = main(command.args)
    assert code == 0 or command.args[0] == "doctor"
    printed = capsys.readouterr().out
    numbers = command.args[0] in ("models", "data")
    have = {plain(line, at_desk, numbers=numbers) for line in printed.splitlines()}
    machine = ("versions", "platform", "processor", "gpu", "speed", "free", "runs go to", "note")
    own = ("optional", "all is well", "verified", "data folder", "checkpoints.", "batch")
    for line in command.output:
        if line != "…" and not line.startswith((*machine, *own)):
            assert plain(line, at_desk, numbers=numbers) in have, line


# -- Python ----------------------------------------------------------------------------------------

PYTHON = [(page.name, block) for page in PAGES for block in blocks(page, "python")]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[page for page, _ in PYTHON])
def test_python_compiles_and_names_exist(page, block):
    tree = ast.parse(block, filename=page)
    modules: dict[str, ModuleType] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                modules[name.asname or name.name] = importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                assert hasattr(importlib.import_module(node.module or ""), name.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            assert module is None or hasattr(module, node.attr), node.attr
        if isinstance(node, ast.Call):
            name = re.fullmatch(r"poiesis\.(\w+)", ast.unparse(node.func))
            if name:
                called_rightly(getattr(poiesis, name[1]), node)


def called_rightly(function: Any, call: ast.Call) -> None:
    """Assert that a function takes the call's arguments; further options are TrainConfig's."""
    signature = inspect.signature(function)
    keywords = {k.arg: None for k in call.keywords if k.arg}
    signature.bind(*call.args, **keywords)
    if function.__name__ in ("train", "compare"):
        further = set(keywords) - set(signature.parameters)
        assert further <= {f.name for f in dataclasses.fields(TrainConfig)}
