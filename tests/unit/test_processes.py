"""What one process sees of several: shares, its own state, and being alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poiesis import processes
from poiesis.errors import ConfigError
from poiesis.nn.batch_norm import SyncedBatchNorm, synchronise
from poiesis.training import distribution


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    """Let the launcher's variables say who we are, without any other process."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(size))


@given(n=st.integers(0, 500), size=st.integers(1, 9), batch=st.integers(1, 70))
def test_shares_cover_all_rows_once_in_whole_batches(n, size, batch):
    with pytest.MonkeyPatch.context() as monkeypatch:
        ends = [0]
        for rank in range(size):
            as_process(monkeypatch, rank, size)
            start, end = processes.share(n, batch)
            assert start == ends[-1] and (start % batch == 0 or start == n)
            ends.append(end)
        assert ends[-1] == n
        sizes = [b - a for a, b in itertools.pairwise(ends)]
        assert max(sizes) - min(sizes) < 2 * batch


def test_alone_everything_is_the_identity():
    rows = torch.arange(6.0).reshape(3, 2)
    processes.sum_([rows])
    assert torch.equal(processes.gather(rows), torch.arange(6.0).reshape(3, 2))
    assert processes.largest(2.0, 1) == [2.0, 1]
    assert processes.of_all("x") == ["x"] and processes.by_main(lambda: 3) == 3
    assert processes.main() and processes.share(7) == (0, 7)
    processes.barrier()


def test_state_per_process_is_kept_apart_and_shared_out_again(monkeypatch):
    monkeypatch.setattr(processes, "of_all", lambda own: [own, {"pool": torch.ones(2)}])
    as_process(monkeypatch, 0, 2)
    saved = distribution.gather_extra({"pool": torch.zeros(2), "level": 3}, {"pool"})
    assert saved.keys() == {"level", "pool@0", "pool@1"}
    for rank, size, expected in [(0, 1, 0), (1, 2, 1), (2, 4, 0), (3, 4, 1)]:
        as_process(monkeypatch, rank, size)
        own = distribution.own_extra(saved, {"pool"})
        assert own.keys() == {"level", "pool"} and own["pool"][0] == expected
    as_process(monkeypatch, 1, 2)
    assert distribution.own_extra({"pool": 5, "level": 3}, {"pool"}) == {"pool": 5, "level": 3}


def test_a_batch_too_small_for_the_processes_is_refused(monkeypatch):
    as_process(monkeypatch, 0, 4)
    distribution.check_batch(4)
    with pytest.raises(ConfigError, match=r"a batch of 3 can't be shared by 4 processes"):
        distribution.check_batch(3)


def test_more_processes_than_gpus_is_said(monkeypatch):
    as_process(monkeypatch, 2, 3)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="which has 2 GPUs; start at most --nproc-per-node 2"):
        processes.join()


def test_synchronised_batch_norm_is_torchs_own_for_rows_cut_in_two(monkeypatch):
    """Two halves in one process: what the processes would exchange is put in by hand."""
    torch.manual_seed(0)
    x = torch.randn(10, 3, 4, 4, dtype=torch.float64) * 5 + 100
    plain = torch.nn.BatchNorm2d(3).double()
    synced = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).double()
    synchronise(synced)
    layer = synced[0]
    assert isinstance(layer, SyncedBatchNorm)
    halves = [x[:4].clone().requires_grad_(), x[4:].clone().requires_grad_()]
    rows = []
    for half in halves:
        var, mean = torch.var_mean(half, (0, 2, 3), correction=0)
        rows.append(torch.cat((mean, var, torch.full_like(mean[:1], half.numel() / 3))))
    table = torch.stack(rows)
    monkeypatch.setattr("poiesis.nn.batch_norm._of_all", lambda row: table)
    as_process(monkeypatch, 0, 2)
    outs = []
    for half in halves:
        outs.append(layer(half))
    x = x.requires_grad_()
    expected = plain(x)
    assert torch.allclose(torch.cat(outs), expected, atol=1e-12)
    weights = torch.randn_like(expected)
    (torch.cat(outs) * weights).sum().backward()
    (expected * weights).sum().backward()
    found = torch.cat([half.grad for half in halves if half.grad is not None])
    assert x.grad is not None and torch.allclose(found, x.grad, atol=1e-10)
    # Twice through the synchronised layer, which moved its averages twice towards the same.
    assert torch.allclose(
        (layer.running_var - 1) / (1 - 0.9**2), (plain.running_var - 1) / 0.1, atol=1e-9
    )
