"""Runs an exported program where there is jax alone."""

import subprocess
import sys

import numpy as np

from jaxprune.compaction import artefact

RUN = """
import sys
import numpy as np
from jax import export
program = export.deserialize(open(sys.argv[1], "rb").read())
assert program.platforms == ("cpu", "cuda", "tpu")
images = np.load(sys.argv[2])
for n in (1, len(images)):
    logits = program.call(images[:n])
np.save(sys.argv[3], logits)
assert not {"flax", "jaxprune"} & set(sys.modules)
"""


def run_program(folder, images):
    """Logits by an artefact's program, in a process that imports jax alone."""
    np.save(folder / "images.npy", images)
    names = (artefact.PROGRAM, "images.npy", "logits.npy")
    command = [sys.executable, "-c", RUN, *names]
    subprocess.run(command, check=True, cwd=folder)
    return np.load(folder / "logits.npy")
