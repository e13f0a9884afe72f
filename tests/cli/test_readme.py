"""The README's five commands and its Python lines work as written, only with fewer steps."""

import re
import shlex
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
SHORTER = {"--train.budget": ("--train.steps", "3"), "--budget": ("--train.steps", "2")}


def shortened(line):
    words = shlex.split(line, comments=True)[1:]
    for option, (other, value) in SHORTER.items():
        if option in words:
            place = words.index(option)
            words[place : place + 2] = [other, value]
    return ["digits" if word == "mnist" else word for word in words]


def test_the_five_commands(poiesis, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^poiesis .*", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert [line.split()[1] for line in lines] == [
        "train",
        "sample",
        "evaluate",
        "report",
        "compare",
    ]
    for line in lines:
        args = shortened(line)
        if args[0] in ("evaluate", "compare"):
            args += ["-n", "40"]
        code, _, err = poiesis(*args)
        assert code == 0, (line, err)
    assert len(list(Path("new-digits").glob("0*.png"))) == 64
    assert (tmp_path / "runs/first/report.html").stat().st_size > 10_000
    assert (tmp_path / "runs/first/evaluation.json").exists()


def test_the_python_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(code.group(1).replace('budget="1m"', "steps=3, quiet=True"), names)
    assert len(names["pictures"]) == 64 and names["pictures"][0].size == (8, 8)
