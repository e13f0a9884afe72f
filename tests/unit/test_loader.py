"""Batches by number: each epoch a permutation, each batch a pure function of (seed, number)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poiesis.data.dataset import TensorSplit, TextSplit
from poiesis.data.loader import Loader, positions
from poiesis.errors import DataError
from poiesis.spec import Grid, Tokens


@given(n=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 5))
def test_each_epoch_is_a_permutation(n, batch, seed):
    count = -(-3 * n // batch)
    batches = [positions(n, batch, seed, k) for k in range(count)]
    assert all(len(where) == len(epochs) == batch for where, epochs in batches)
    order = torch.cat([where for where, _ in batches])
    epochs = torch.cat([epochs for _, epochs in batches])
    for epoch in range(3):
        assert sorted(order[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))
        assert epochs[epoch * n : (epoch + 1) * n].tolist() == [epoch] * n


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = (positions(1000, 1000, 0, k)[0] for k in range(2))
    other = positions(1000, 1000, 1, 0)[0]
    # Two random permutations of n agree in about one place.
    for a, b in ((first, second), (first, other), (first, torch.arange(1000))):
        assert int((a == b).sum()) < 10


def images(n: int = 20) -> tuple[TensorSplit, Grid]:
    spec = Grid(channels=1, size=(2, 2))
    x = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).expand(n, 1, 2, 2)
    return TensorSplit(x, torch.arange(n) % 3), spec


def test_a_batch_is_a_pure_function_of_its_number_and_slices_join():
    split, spec = images()
    bits = Grid(channels=1, size=(2, 2), domain="bits")

    def loader() -> Loader:
        return Loader(split, spec, bits, batch_size=6, seed=3)

    used = loader()
    for number in (0, 1, 2, 3):
        used.batch(number)
    for number in (3, 0):
        x, y, where = loader().batch(number)
        again_x, again_y, again_where = used.batch(number)
        assert torch.equal(x, again_x) and torch.equal(y, again_y)
        assert torch.equal(where, again_where) and torch.equal(y, where % 3)
        parts = [used.batch(number, start=s, size=2) for s in (0, 2, 4)]
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[2] for part in parts]), where)


def test_in_order_gives_each_row_once_and_a_limit_spreads():
    split, spec = images()
    loader = Loader(split, spec, spec, batch_size=6)
    rows = list(loader.in_order())
    assert [len(x) for x, _, _ in rows] == [6, 6, 6, 2]
    assert torch.cat([where for _, _, where in rows]).tolist() == list(range(20))
    some = torch.cat([where for _, _, where in loader.in_order(5)]).tolist()
    assert some[0] == 0 and some[-1] == 19 and len(set(some)) == 5


def text(length: int = 101) -> tuple[TextSplit, Tokens]:
    return TextSplit(torch.arange(length)), Tokens(vocabulary=length, length=0, stream=True)


def test_windows_predict_each_token_once_and_move_between_epochs():
    split, spec = text()
    view = Tokens(vocabulary=101, length=10, stream=True)
    loader = Loader(split, spec, view, batch_size=10, seed=0)
    assert len(loader) == 10
    windows = torch.cat([x for x, _, _ in loader.in_order()])
    assert windows.shape == (10, 11)
    # Disjoint but for the first token of each, which is context only.
    assert windows[:, 1:].flatten().tolist() == list(range(1, 101))
    starts = [loader.batch(epoch)[0][:, 0].sort().values for epoch in range(8)]
    for x in (loader.batch(epoch)[0] for epoch in range(8)):
        assert torch.equal(x - x[:, :1], torch.arange(11).expand(10, 11))
    shifts = {int(row[0]) for row in starts}
    assert len(shifts) > 3 and all(0 <= shift < 10 for shift in shifts)
    assert torch.equal(loader.batch(5)[0], Loader(split, spec, view, batch_size=10).batch(5)[0])


def test_too_little_data_is_one_line():
    split, spec = text(9)
    with pytest.raises(DataError, match="fewer than one window of 11: use more text"):
        Loader(split, spec, Tokens(vocabulary=9, length=10, stream=True), batch_size=1)
    with pytest.raises(DataError, match="no samples"):
        Loader(TensorSplit(torch.zeros(0, 1, 2, 2)), images()[1], images()[1], batch_size=1)
