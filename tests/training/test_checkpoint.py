import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._base import manifest
from jaxprune._base.errors import InputError
from jaxprune.recipes.models import PairCNN
from jaxprune.training import checkpoint
from random_data import random_variables

MODEL = PairCNN(widths=(2, 3, 4), dense=(5, 2))
X = jnp.zeros((1, 8, 8, 2))


@pytest.fixture
def variables():
    return random_variables(MODEL, X)


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_round_trip_keeps_two(tmp_path, variables):
    optimizer = {"count": jnp.int32(7)}
    for epoch in (1, 2, 3):
        checkpoint.save(tmp_path, epoch, variables, optimizer)
    assert checkpoint.latest(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    restored, state = checkpoint.restore(tmp_path, 3, variables, optimizer)
    assert_equal(restored, variables)
    assert state["count"] == 7
    assert_equal(checkpoint.restore(tmp_path, 3, variables)[0], variables)


def test_nothing_there(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_fingerprint_sees_values_names_and_types(variables):
    first = manifest.fingerprint(variables)
    assert manifest.fingerprint(jax.tree.map(jnp.asarray, variables)) == first
    changed = jax.tree.map(np.copy, variables)
    changed["params"]["conv1"]["bias"][0] += 1e-7
    assert manifest.fingerprint(changed) != first


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "foreign"])
def test_a_damaged_checkpoint_is_refused(tmp_path, variables, damage):
    checkpoint.save(tmp_path, 1, variables)
    files = [p for p in (tmp_path / "1").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    if damage == "truncate":
        largest.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 0xFF
        largest.write_bytes(content)
    elif damage == "remove":
        shutil.rmtree(tmp_path / "1" / "variables")
    template = variables
    if damage == "foreign":
        template = random_variables(PairCNN(widths=(2, 3, 4), dense=(6, 2)), X)
    with pytest.raises(InputError, match=r"1 is damaged or of another network"):
        checkpoint.restore(tmp_path, 1, template)


def test_no_damage_of_what_training_goes_on_from_is_believed(tmp_path, variables):
    """A byte in each of 40 places of the optimizer's files becomes another."""
    state = {"count": jnp.int32(7), "mu": variables, "nu": variables}
    checkpoint.save(tmp_path / "whole", 1, variables, state, {"config": {"seed": 3}})
    rng, refused = np.random.default_rng(0), 0
    for trial in range(40):
        folder = tmp_path / f"{trial}"
        shutil.copytree(tmp_path / "whole", folder)
        every = sorted(p for p in (folder / "1").rglob("*") if p.is_file())
        places = [p for p in every if "optimizer" in str(p) and p.stat().st_size]
        path = places[rng.integers(len(places))]
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content)
        try:
            restored = checkpoint.restore(folder, 1, variables, state)
            assert_equal(restored, (variables, state))
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused


def test_an_optimizer_state_of_another_checkpoint(tmp_path, variables):
    """It is whole, and of the same shapes."""
    for epoch in (1, 2):
        checkpoint.save(tmp_path, epoch, variables, {"count": jnp.int32(epoch)})
    shutil.rmtree(tmp_path / "2" / "optimizer")
    shutil.copytree(tmp_path / "1" / "optimizer", tmp_path / "2" / "optimizer")
    with pytest.raises(InputError, match="its optimizer does not match"):
        checkpoint.restore(tmp_path, 2, variables, {"count": jnp.int32(0)})
    assert_equal(checkpoint.restore(tmp_path, 2, variables)[0], variables)


def test_facts_are_kept_and_checked(tmp_path, variables):
    checkpoint.save(tmp_path, 1, variables, facts={"config": {"seed": 3}})
    made_with = {"jax": jax.__version__}
    assert checkpoint.facts(tmp_path, 1) == {"config": {"seed": 3}, **made_with}
    path = next((tmp_path / "1" / "about").glob("metadata"))
    text = path.read_text()
    path.write_text(text.replace("3}", "4}"))
    assert path.read_text() != text
    with pytest.raises(InputError, match="does not match its own digest"):
        checkpoint.facts(tmp_path, 1)
    path.write_text(text)
    (tmp_path / "1").rename(tmp_path / "2")
    with pytest.raises(InputError, match="it is of epoch 1"):
        checkpoint.restore(tmp_path, 2, variables)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path, variables, monkeypatch
):
    checkpoint.save(tmp_path, 1, variables)

    def full(*args, **kwargs):
        (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
        with pytest.raises(InputError, match="could not be written"):
            checkpoint.save(tmp_path, 2, variables)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert_equal(checkpoint.restore(tmp_path, 1, variables)[0], variables)
