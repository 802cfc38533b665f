"""What the tests of scripts share: flags of a small run, a planted dataset."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from jaxprune._base import manifest
from jaxprune._base.files import sha256
from jaxprune.recipes import config
from jaxprune.recipes.recipe import RECIPES
from jaxprune.training import checkpoint
from random_data import random_variables

SMALL = (
    "--model=digits_pair", "--widths=4,6,8", "--dense=10", "--train_pairs=300",
    "--test_pairs=200", "--train_batch_size=50", "--epochs=2",
)  # fmt: skip


FOLDER = Path("runs/digits_pair/sweep-conv3-abs_mean-bias")


_FEW = {
    "digits_pair": {
        "widths": (2, 3, 4), "dense": (5,), "train_pairs": 50, "test_pairs": 30,
        "train_batch_size": 10, "epochs": 1,
    },
    # On the digits.
    "cifar_resnet": {
        "depth": 8, "widths": (3, 4, 6), "dataset": "digits", "pixel_mean": (0.0,),
        "pixel_std": (255.0,), "train_batch_size": 32, "train_split": "train[:96]",
        "epochs": 1,
    },
}  # fmt: skip
_INPUT = {"digits_pair": (1, 28, 28, 2), "cifar_resnet": (1, 28, 28, 1)}


def plant_run(workdir, facts=None, model="digits_pair", **changes):
    """A run directory with drawn weights, as if they had been trained.

    Args:
      workdir: where.
      facts: that the checkpoint keeps; by default the configuration.
      model: digits_pair or cifar_resnet.
      changes: to the configuration.

    Returns:
      Its configuration.
    """
    recipe = RECIPES[model]
    conf = replace(recipe.config, **_FEW[model] | changes)
    classes = 2 if model == "digits_pair" else 10
    variables = random_variables(recipe.build(conf, classes), np.zeros(_INPUT[model]))
    about = {"config": asdict(conf)} if facts is None else facts
    checkpoint.save(Path(workdir) / "checkpoints", conf.epochs, variables, facts=about)
    config.write(conf, Path(workdir))
    return conf


def opened(out):
    """The paths that a script's output ends with: at most three, all there."""
    first, paths = out.rsplit("open next:\n", 1)
    found = [line.removeprefix("  ") for line in paths.splitlines()]
    assert 1 <= len(found) <= 3 and first.count("open next:") == 0
    assert all(Path(p).is_dir() if p[-1] == "/" else Path(p).is_file() for p in found)
    return found


def reseal(folder, change, record="summary.json"):
    """Changes a record and makes its sums agree again."""
    facts = json.loads((folder / record).read_text())
    change(facts)
    (folder / record).unlink()
    manifest.write(folder, record, facts)


def plant_cifar10(folder):
    """A decoded cache of random images, as another machine's would be copied here."""
    entry = folder / "planted" / "cifar10" / "0123456789abcdef"
    entry.mkdir(parents=True)
    rng = np.random.default_rng(0)
    about = {
        "source": "planted",
        "class_names": [str(c) for c in range(10)],
        "sha256": {},
    }
    for split in ("train", "test"):
        np.save(
            entry / f"{split}_images.npy",
            rng.integers(0, 256, (40, 32, 32, 3), np.uint8),
        )
        np.save(entry / f"{split}_labels.npy", np.arange(40) % 10)
        for key in ("images", "labels"):
            about["sha256"][key] = sha256(entry / f"{split}_{key}.npy")
        about["sha256"]["class_names"] = manifest.digest(about["class_names"])
        (entry / f"{split}.json").write_text(json.dumps(about))
