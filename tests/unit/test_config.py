"""Configurations: to and from plain dicts, YAML and dotted keys; mistakes say what to do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from poiesis import config as configs
from poiesis.data.config import DataConfig
from poiesis.errors import ConfigError
from poiesis.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested."""

    rate: float = 0.5
    """A rate."""
    kind: Literal["a", "b", 3] = "a"
    """A choice."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Top."""

    count: int = 1
    """How many."""
    on: bool = False
    """A switch."""
    name: str | None = None
    """A name,
    on two lines."""
    widths: tuple[int, ...] = (1, 2)
    """Numbers."""
    pair: tuple[float, float] = (0.0, 1.0)
    """Two."""
    inner: Inner = field(default_factory=Inner)
    """More."""
    undocumented: int = 0


values = st.fixed_dictionaries(
    {
        "count": st.integers(-(2**40), 2**40),
        "on": st.booleans(),
        "name": st.none() | st.text().filter(lambda text: text != "none"),
        "widths": st.lists(st.integers()).map(tuple),
        "pair": st.tuples(*[st.floats(allow_nan=False)] * 2),
        "inner": st.builds(
            Inner, rate=st.floats(allow_nan=False), kind=st.sampled_from(["a", "b", 3])
        ),
    }
)


@given(values)
def test_any_configuration_survives_yaml(fields):
    config = Outer(**fields)
    assert configs.from_dict(Outer, yaml.safe_load(configs.save_yaml(configs.to_dict(config)))) == (
        config
    )


def test_overrides_reach_nested_keys_and_keep_the_rest():
    base = Outer(count=7, inner=Inner(rate=0.1))
    changed = configs.override(base, {"inner.kind": "b", "widths": [3]})
    assert changed == Outer(count=7, widths=(3,), inner=Inner(rate=0.1, kind="b"))
    assert base.inner.kind == "a"
    assert configs.from_dict(Outer, {"inner": {"kind": "b"}}, base=base).inner.rate == 0.1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"count": "12"}, Outer(count=12)),
        ({"count": 3.0}, Outer(count=3)),
        ({"count": "1e3"}, Outer(count=1000)),
        ({"on": "yes"}, Outer(on=True)),
        ({"widths": "4, 5"}, Outer(widths=(4, 5))),
        ({"widths": "(4,5)"}, Outer(widths=(4, 5))),
        ({"widths": []}, Outer(widths=())),
        ({"pair": [1, 2]}, Outer(pair=(1.0, 2.0))),
        ({"name": "none"}, Outer()),
        ({"inner": {"kind": "3"}}, Outer(inner=Inner(kind=3))),
    ],
)
def test_values_are_read_as_their_type(data, expected):
    assert configs.from_dict(Outer, data) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"cuont": 1}, "unknown key 'cuont' .did you mean 'count'"),
        ({"inner": {"raet": 1}}, "unknown key 'inner.raet' .did you mean 'rate'"),
        ({"zzz": 1}, "unknown key 'zzz'; known: count, on"),
        ({"count": 1.5}, "count = 1.5 is not a int"),
        ({"count": True}, "count = True is not a int"),
        ({"count": "many"}, "count = 'many' is not a int"),
        ({"on": "maybe"}, "on = 'maybe' is not a bool"),
        ({"pair": [1]}, r"pair = \[1\] is not a tuple\[float, float\]"),
        ({"widths": [1, "x"]}, "widths = 'x' is not a int"),
        ({"inner": {"kind": "bb"}}, "inner.kind = 'bb' is not one of: a, b, 3"),
        ({"inner": 5}, "inner = 5 is not a Inner"),
    ],
)
def test_mistakes_name_the_key_and_the_way_out(data, message):
    with pytest.raises(ConfigError, match=message) as raised:
        configs.from_dict(Outer, data)
    assert "\n" not in str(raised.value)


def test_yaml_mistakes(tmp_path):
    path = tmp_path / "run.yaml"
    for text, message in (("a: [1", "not valid YAML at line"), ("- 1", "no mapping of keys")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            configs.load_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't read the configuration"):
        configs.load_yaml(path)
    with pytest.raises(ConfigError, match="can't read the configuration"):
        configs.load_yaml(tmp_path / "missing.yaml")
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        configs.load_yaml(path)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("2", 2),
        (1.5, 1.5),
        ("1.5H", 5400),
        ("1d", 86400),
    ],
)
def test_durations(text, seconds):
    assert configs.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5 parsecs", "m5", "-5m", "0", "nan", "1e3", 0, float("inf")])
def test_bad_durations_show_how_to_write_one(text):
    with pytest.raises(ConfigError, match=r"write e\.g\. 90s, 5m or 1h30m"):
        configs.parse_duration(text)


def test_bounds():
    configs.check("x", None, low=1)
    configs.check("x", 1, low=1, high=1)
    for value, options, bound in (
        (0, {"low": 1}, r"\[1, inf\)"),
        (0, {"low": 0, "open_low": True}, r"\(0, inf\)"),
        (3, {"low": 1, "high": 2}, r"\[1, 2\]"),
        (float("nan"), {}, r"\(-inf, inf\)"),
    ):
        with pytest.raises(ConfigError, match=f"x = {value} is outside {bound}"):
            configs.check("x", value, **options)


def test_field_docs_are_read_from_the_source():
    docs = configs.field_docs(Outer)
    assert docs["count"] == "How many."
    assert docs["name"] == "A name,\non two lines."
    assert "undocumented" not in docs
    for cls in (TrainConfig, DataConfig):
        assert configs.field_docs(cls).keys() == {f.name for f in dataclasses.fields(cls)}


def test_flatten():
    nested = {"a": {"b": 1, "c": {"d": 2}}, "e": {}, "f": [3]}
    assert dict(configs.flatten(nested)) == {"a.b": 1, "a.c.d": 2, "e": {}, "f": [3]}


def test_only_one_length_of_training():
    with pytest.raises(ConfigError, match=r"choose one of train.budget and train.steps"):
        TrainConfig(budget="5m", steps=3)
    for bad in ({"steps": 0}, {"epochs": 0}, {"accumulate": 0}, {"clip": -1}, {"keep": 0}):
        with pytest.raises(ConfigError, match=f"train.{next(iter(bad))} = .* is outside"):
            TrainConfig(**bad)


@pytest.mark.parametrize(
    ("values", "says"),
    [((), r"w = \(\) is empty"), ((1, 2, 3, 4), "has not 1 to 3"), ((1, 9), "w = 9 is outside")],
)
def test_lists_out_of_bounds_say_so(values, says):
    configs.check_each("w", (1, 2, 3), low=1, high=8, most=3)
    with pytest.raises(ConfigError, match=says):
        configs.check_each("w", values, low=1, high=8, most=3)
