from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import tyro

from poiesis.cli.options import Nested, options, parse, scan
from poiesis.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner options."""

    width: int = 8
    """Width."""
    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""
    share: float | None = None
    """Share."""
    deep: bool = False
    """Deep."""
    kind: Literal["soft", "hard", "none"] | None = "soft"
    """Kind."""
    channels: Literal[1, 3] | None = None
    """Channels."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Outer options."""

    name: tyro.conf.Positional[str]
    """Name."""
    count: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Count."""
    text: str | None = None
    """Text."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Stop."""
    dry_run: bool = False
    """Flag."""
    inner: Nested[Inner] = Inner()
    """Inner."""


def read(*args):
    return parse(Outer, args, prog="prog", description="", examples=["prog x"])


def test_every_kind_of_field():
    got = read(
        *("x", "-n", "3", "--text", "a=b c", "--stop", "\n", "--stop=-", "--dry-run"),
        *("--inner.width=9", "--inner.sizes", "4", "5", "--inner.share", "1e-3", "--inner.deep"),
        *("--inner.kind", "hard", "--inner.channels", "3"),
    )
    inner = Inner(width=9, sizes=(4, 5), share=1e-3, deep=True, kind="hard", channels=3)
    assert got == Outer(
        name="x", count=3, text="a=b c", stop=("\n", "-"), dry_run=True, inner=inner
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--inner.sizes", "4,5"], Inner(sizes=(4, 5))),
        (["--inner.sizes=(4, 5)"], Inner(sizes=(4, 5))),
        (["--inner.sizes", "none"], Inner(sizes=())),
        (["--inner.deep", "yes"], Inner(deep=True)),
        (["--inner.deep=false"], Inner(deep=False)),
        (["--inner.share", "none"], Inner(share=None)),
        (["--inner.share", "-2"], Inner(share=-2.0)),
        (["--inner.kind", "none"], Inner(kind="none")),
        (["--inner.channels", "none"], Inner(channels=None)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_spellings_of_values(args, expected):
    assert read("x", *args).inner == expected
    assert read(*args, "--dry-run", "x").inner == expected


def test_dashes_and_underscores_are_the_same():
    assert read("x", "--dry_run") == read("x", "--dry-run")


def test_a_positional_may_follow_a_boolean():
    assert read("--inner.deep", "x") == Outer(name="x", inner=Inner(deep=True))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["x", "--inner.widht", "3"], "did you mean '--inner.width'?"),
        (["x", "--width", "3"], "did you mean '--inner.width'?"),
        (["x", "--cuont", "3"], "did you mean '--count'?"),
        (["x", "--zzz"], "prog --help lists them"),
        (["x", "--inner.width", "big"], "--inner.width = 'big' is not a whole number"),
        (["x", "--inner.share", "much"], "is not a number"),
        (["x", "--inner.sizes", "3,y"], "'y' is not a whole number"),
        (["x", "--inner.kind", "hrad"], "soft, hard, none (did you mean 'hard'?)"),
        (["x", "--inner.deep=maybe"], "neither true nor false"),
        (["x", "--dry-run=3"], "takes no value"),
        (["x", "--count"], "--count needs a value"),
        (["x", "--count", "--dry-run"], "--count needs a value"),
        (["x", "y"], "unexpected argument 'y'"),
        ([], "prog needs NAME; e.g. prog x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(args, says):
    with pytest.raises(ConfigError) as error:
        read(*args)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_options_are_the_fields():
    assert [(o.name, o.kind) for o in options(Outer)][:5] == [
        ("name", "positional"),
        ("--count", "one"),
        ("--text", "one"),
        ("--stop", "append"),
        ("--dry-run", "flag"),
    ]


def test_a_first_pass_passes_over_options_it_does_not_know_yet():
    args = ["--model.x", "3", "vae", "--model.y=4", "--count", "2"]
    assert scan(args, options(Outer), prog="prog", ignore="--model.") == (
        ["vae"],
        {"--count": ["2"]},
    )


def test_help_shows_every_option_with_its_text(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    out = capsys.readouterr().out
    for option in options(Outer)[1:]:
        assert option.name in out
    assert "Width. (default: 8)" in out
