"""How threads wait for one another."""

import os

import pytest

from poiesis import machine


@pytest.mark.parametrize(("idle", "wanted"), [(True, "GOMP_SPINCOUNT"), (False, "OMP_WAIT_POLICY")])
def test_threads_spin_on_an_idle_machine_alone(monkeypatch, idle, wanted):
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(machine, "_idle", lambda: idle)
    machine.choose_waiting()
    assert list(environment) == [wanted]


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_user_says_stays(monkeypatch, name):
    environment = {name: "7"}
    monkeypatch.setattr(os, "environ", environment)
    machine.choose_waiting()
    assert environment == {name: "7"}
