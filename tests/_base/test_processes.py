import jax
import numpy as np
import pytest

from jaxprune._base import processes
from jaxprune._base.errors import InputError


def test_processes_share_images(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for i in range(3):
        monkeypatch.setattr(jax, "process_index", lambda i=i: i)
        shares.append(processes.own(11))
    assert [len(s) for s in shares] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(11))
    monkeypatch.setattr(jax, "process_count", lambda: 12)
    with pytest.raises(InputError, match="12 processes for a split of 11"):
        processes.own(11)
