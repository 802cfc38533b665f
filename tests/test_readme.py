"""README's Python runs as it stands, on a model defined here."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from random_data import random_split

README = Path(__file__).parent.parent / "README.md"


class Somebodys(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(8, (3, 3))(x / 255.0))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(4)(x.mean((1, 2)))


@jax.numpy_dtype_promotion("standard")  # the model divides integers by 255.0
@pytest.mark.parametrize(
    "dtype", [np.uint8, pytest.param(np.float32, marks=pytest.mark.slow)]
)
def test_the_lines_for_ones_own_model(dtype, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep, function, compact, shrink, groups = (
        block.split("```")[0] for block in README.read_text().split("```python\n")[1:]
    )
    assert len([line for line in sweep.splitlines() if line]) <= 10
    split = random_split(n=40)
    model = Somebodys()
    images = np.asarray(split.images, dtype)
    variables = model.init(jax.random.key(0), jnp.asarray(images[:1]), train=False)
    names = {
        "model": model, "variables": variables, "images": images,
        "labels": split.labels, "class_names": split.class_names,
        "calibration_images": images[::2],
    }  # fmt: skip
    exec(sweep, names)
    assert names["tapped"].name == "Conv_0"
    result = names["result"]
    assert result.predictions.shape == (8, 40)
    assert capsys.readouterr().out
    names |= {"f": names["apply"], "params": variables}
    exec(function, names)
    assert len(names["small"].layers["Conv_0"].kept) == 4
    assert names["logits"].shape == (40, 4)
    exec(compact, names)
    assert len(names["small"].layers["Conv_0"].kept) == 8 - names["k"]
    row = result.ks.index(names["k"])
    expected = result.predictions[row, :16]
    np.testing.assert_array_equal(names["logits"].argmax(-1), expected)
    np.testing.assert_array_equal(names["small"](images[:16]), names["logits"])
    exec(shrink, names)
    assert names["fast"](images[:4]).shape == (4, 4)
    assert len(names["fast"].layers["Conv_0"].kept) <= 4
    exec(groups, names)
    assert names["smaller"].layers["Conv_0"].kept == (0, 2, 4, 6)


def test_its_two_commands_are_lines_of_their_own():
    lines = [
        x.strip() for x in README.read_text().splitlines() if "python3 -m venv" in x
    ]
    assert len(lines) == 2 and lines[1].endswith("pytest")


def test_its_pictures_exist_and_are_small():
    text = README.read_text()
    linked = (part.split(")")[0] for part in text.split("](")[1:])
    names = [name for name in linked if not name.startswith("https://")]
    assert names
    for name in names:
        assert 0 < (README.parent / name).stat().st_size < 2**20
