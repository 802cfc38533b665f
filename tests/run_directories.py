"""What the tests of scripts share: flags of a small run, a planted dataset."""

import json
from pathlib import Path

import numpy as np

from jaxprune.files import sha256

SMALL = (
    "--model=digits_pair", "--widths=4,6,8", "--dense=10", "--train_pairs=300",
    "--test_pairs=200", "--train_batch_size=50", "--epochs=2",
)  # fmt: skip


FOLDER = Path("runs/digits_pair/sweep-conv3-abs_mean-bias")


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
        (entry / f"{split}.json").write_text(json.dumps(about))
