"""A set four times larger than the memory a process may take trains, in the same order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

CAP = 32 * 2**20
SIDE = 128
COUNT = 5 * CAP // (3 * SIDE * SIDE)

SCRIPT = """
import json, re, resource, sys
from pathlib import Path
import torch
from torch import nn
from poiesis.data import open_data
from poiesis.data.config import DataConfig
from poiesis.spec import Grid
from poiesis.training.config import TrainConfig
from poiesis.training.engine import Engine
from tests.contract.toys import Toy

folder, memory, cap, when = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)


def limit():
    now = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    if cap:
        resource.setrlimit(resource.RLIMIT_DATA, (now + cap, now + cap))


class Colours(Toy):
    def __init__(self):
        super().__init__(Toy.Config(batch_size=8), Grid(channels=3, size=(128, 128), domain="unit"))
        self.generator = nn.Conv2d(3, 3, 1)

    def fit_loss(self, batch, step):
        order.append(batch.index.tolist())
        return (self.generator(batch.x) - batch.x.flip(1)).square().mean((1, 2, 3)), {}


if when == "before":
    limit()
config = DataConfig(source=folder, memory=memory, validation=0.01)
data = open_data(folder, config)
assert data.notes["streamed"] == (memory < 1)
torch.manual_seed(0)
model = Colours()
steps = len(data.splits["train"]) // 8
engine = Engine(model, data, TrainConfig(steps=steps), quiet=True)
seen, order = [], []
for step in range(steps):
    if step == 2 and when == "after":
        limit()
    seen.append(float(engine.run_step()["fit"]))
    engine.step += 1
print(json.dumps({"losses": seen, "order": order}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    for number in range(COUNT):
        colour = (number % 256, number * 7 % 256, number * 13 % 256)
        picture = Image.new("RGB", (SIDE, SIDE), colour)
        picture.paste((255 - colour[0], 0, 0), (0, 0, 1 + number % SIDE, SIDE // 2))
        picture.save(folder / f"{number:05d}.png", compress_level=1)
    return folder


def train(folder: Path, memory: float, cap: int, when: str) -> subprocess.CompletedProcess[str]:
    """Train one epoch; memory: GB up to which data is held; cap: bytes the process may add."""
    arguments = [str(folder), str(memory), str(cap), when]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=200,
    )


def test_a_set_four_times_the_memory_trains_in_the_same_order(folder):
    held = train(folder, 4, 0, "never")
    assert held.returncode == 0, held.stderr
    streamed = train(folder, CAP / 1e9, CAP, "after")
    assert streamed.returncode == 0, streamed.stderr
    one, two = json.loads(held.stdout), json.loads(streamed.stdout)
    assert two["order"] == one["order"]
    # The last digit of a sum may depend on where in memory a batch lies.
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert len({row for batch in two["order"] for row in batch}) * 3 * SIDE * SIDE >= 4 * CAP


def test_the_cap_holds(folder):
    """The same limit stops a process that holds the set: the test above is no accident."""
    held = train(folder, 4, CAP, "before")
    assert held.returncode != 0
    assert "memory" in held.stderr.lower()
