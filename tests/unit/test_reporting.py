"""Reports hold everything themselves; the copying test tells copies from new images."""

import math
from html.parser import HTMLParser

import pytest
import torch

from poiesis.data import open_data
from poiesis.errors import ConfigError, RunError
from poiesis.evaluation.passport import Number, Passport
from poiesis.reporting.neighbours import Copying, copying, nearest
from poiesis.reporting.page import report
from poiesis.reporting.plots import curve, panels, smooth
from poiesis.reporting.sections import duration, short
from poiesis.training.verb import train

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that tags close in order; collects what the page refers to, and its text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.references, self.pictures, self.tags, self.words = [], [], 0, set(), []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.references.append(value)
        self.pictures += tag == "img"

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(path):
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert "http://" not in html and "https://" not in html and "@import" not in html
    assert "script" not in page.tags
    assert all(r.startswith(("data:image/png;base64,", "#")) for r in page.references)
    return page, " ".join(" ".join(page.words).split())


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "vae"
    return train("vae", "digits", steps=3, grids=2, validations=1, out=out, quiet=True)


def test_a_report_is_whole_and_self_contained(run):
    page, text = read(report(run.path, samples=16))
    # The grid, two grids over time, and 12 samples with two neighbours each.
    assert page.pictures == 1 + 2 + 12 * 3
    assert "svg" in page.tags
    for words in ("vae on digits", "step 3", "Is it copying?", "180 held-out", "latent", "torch"):
        assert words in text
    assert f"poiesis evaluate {run.path}" in text


def test_a_report_escapes_what_it_is_told(run, tmp_path):
    stored = run.read_json("data.json")
    try:
        run.write_json("data.json", {**stored, "name": "<script>alert(1)</script>"})
        page, _ = read(report(run.path, samples=10, out=tmp_path / "sub" / "page.html"))
        assert "script" not in page.tags
    finally:
        run.write_json("data.json", stored)


def test_a_report_of_nothing_says_so(tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        report(tmp_path / "none")


def test_a_report_refuses_no_samples(run):
    with pytest.raises(ConfigError, match="samples = 0"):
        report(run.path, samples=0)


def pixels(x):
    return x.flatten(1).double()


def test_copies_are_all_found(digits):
    train_split = digits.splits["train"]
    where = torch.arange(0, 600, 7)
    samples, _ = train_split.fetch(where)
    found = copying(samples, digits.splits, pixels)
    assert found.share == 1 and found.distance.max() == 0
    assert torch.equal(train_split.fetch(found.index)[0], samples)


def test_unseen_images_are_not_taken_for_copies(digits):
    # Validation images are drawn as the test images are, of which 1% define the threshold.
    samples = digits.splits["validation"].x
    assert copying(samples, digits.splits, pixels).share < 0.06


def test_a_copy_with_little_noise_is_still_close(digits):
    samples = digits.splits["train"].x[:50].clone()
    samples[:, :, 0, 0] = samples[:, :, 0, 0].clamp(max=15) + 1
    assert copying(samples, digits.splits, pixels).share == 1


def test_nearest_is_exact(digits):
    rows = digits.splits["test"].x[:20]
    distance, index = nearest(pixels(rows), digits.splits["train"], pixels)
    gaps = torch.cdist(pixels(rows), pixels(digits.splits["train"].x))
    torch.testing.assert_close(distance, gaps.min(1).values)
    torch.testing.assert_close(gaps.gather(1, index[:, None])[:, 0], gaps.min(1).values)


def test_the_interval_of_a_share_is_wilsons():
    close = torch.tensor([True] * 8 + [False] * 2)
    found = Copying(
        index=close.long(), distance=close.double(), threshold=1.0, close=close, held_out=9
    )
    # Published example: 8 of 10 gives 0.4902 … 0.9433 (Wilson score, no continuity correction).
    assert found.interval == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_smoothing_keeps_constants_and_has_no_start_up_bias():
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smooth([1.0, 2.0], 0.5) == pytest.approx([1.0, (0.5 * 1 + 1 * 2) / 1.5])
    assert smooth([1.0, math.nan, 1.0]) == pytest.approx([1.0, 1.0, 1.0])


def test_panels_collect_points_of_each_kind():
    lines = [
        {"step": 1, "train/loss": 2.0, "train/rate": 5.0},
        {"step": 2, "validation/loss": 1.0, "train/other": None},
    ]
    assert panels(lines) == {"loss": {"train": [(1, 2.0)], "validation": [(2, 1.0)]}}


def test_a_curve_takes_the_colours_of_the_page():
    svg = curve("loss & more", [(1, 1.0), (2, 1000.0)], [(1, 2.0)])
    assert svg.startswith("<svg") and "currentColor" in svg and "xmlns" not in svg
    assert "loss &amp; more" in svg and "#010203" not in svg
    Page(svg)


def number(value, interval):
    passport = Passport(data="d", variant="d", split="test", n_real=1, n_generated=1, seed=0)
    return Number(
        name="fid", value=value, interval=interval, higher_is_better=False, passport=passport
    )


def test_numbers_show_no_more_digits_than_their_interval_bears():
    assert short(number(19.53217, (18.74, 20.36))) == ("19.53", "18.74 … 20.36")
    assert short(number(1234.5, (1100.0, 1400.0))) == ("1234", "1100 … 1400")
    assert short(number(8972.3, None)) == ("8,972", "")
    assert short(number(0.0, (0.0, 0.0))) == ("0", "0 … 0")


def test_durations_read_well():
    assert [duration(s) for s in (8.4, 320, 7500)] == ["8 s", "5 min 20 s", "2 h 5 min"]
