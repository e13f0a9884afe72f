"""What all tests share: one processor thread, so that numbers and times do not depend on cores."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)
