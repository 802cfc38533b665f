"""A file that is damaged, changed or exchanged: equal, refused in one line, or rebuilt.

Each kind of file is loaded as the scripts or the API load it.
"""

import dataclasses
import functools
import json
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import keras_files
from canonical import digest
from damage import damage, reseal
from jaxprune._base.errors import InputError
from jaxprune._base.files import sha256
from jaxprune._base.journal import Journal
from jaxprune.adapters.linen import from_linen
from jaxprune.cli import lock, run_directory
from jaxprune.cli.settings import NetworkSettings
from jaxprune.cli.shrink import measured
from jaxprune.compaction import artefact
from jaxprune.compaction.load import load_compact
from jaxprune.costs.clock import Clock
from jaxprune.data import tfds
from jaxprune.evaluation.program import Plan
from jaxprune.fills.fill import resolve_fill
from jaxprune.graph import sizes
from jaxprune.ranking import criteria
from jaxprune.ranking.order import pruning_order
from jaxprune.recipes import config
from jaxprune.recipes.keras_import import import_keras
from jaxprune.recipes.models import PairCNN
from jaxprune.recipes.recipe import RECIPES
from jaxprune.results import budgets
from jaxprune.results.comparison import Comparison
from jaxprune.results.result import SweepResult
from jaxprune.sweep import checkpoint as sweep_checkpoint
from jaxprune.sweep import layer
from jaxprune.sweep.activations import tap_layer
from jaxprune.training import checkpoint, loop
from random_data import random_variables
from run_directories import plant_cifar10
from runs import JOBS, Job, Runs
from tally import trials
from toys import planted

pytestmark = pytest.mark.slow
DAMAGES = {
    "config": 110, "checkpoint": 170, "sweep": 130, "comparison": 90,
    "network": 110, "shrink": 60, "budgets": 30, "times": 60, "unfinished": 80,
    "decoded": 80, "keras": 60, "lock": 20,
}  # fmt: skip
SWEEP = "sweep-conv3-abs_mean-bias"
NETWORK = "compact-conv3-abs_mean-bias-k3"
REBUILT = "rebuilt"


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
      source: a folder that holds such files, whole.
      files: which of its files are damaged; a pattern.
      load: folder -> what is in it, comparable; `Rebuilt` where it is made anew.
      twin: a folder of the same of another network, if there is one.
      record: a file that seals itself, if there is one.
    """

    source: Path
    files: str
    load: Callable[[Path], Any]
    twin: Path | None = None
    record: str | None = None


class Rebuilt(Exception):
    """What was lost is made anew."""


@pytest.fixture(scope="module")
def made(tmp_path_factory, starter):
    """Two run directories with everything in them, of networks of two seeds."""
    runs = Runs(tmp_path_factory.mktemp("damages"), starter)
    jobs = [JOBS[n] for n in ("train", "sweep", "compare", "compact", "shrink")]
    other = [Job(j.script, (*j.arguments, "--seed=1")) for j in jobs[:2] + jobs[3:4]]
    return runs.after(jobs) / "run", runs.after(other) / "run"


def as_facts(value: Any) -> Any:
    """Dataclasses and arrays, comparable."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: as_facts(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | jax.Array):
        return digest(np.asarray(value))
    return value


def of_config(folder: Path) -> Any:
    settings = NetworkSettings(workdir=str(folder))
    return as_facts(run_directory.resolve(settings, train_imported=False))


def of_checkpoint(folder: Path) -> Any:
    epoch = checkpoint.latest(folder)
    if epoch is None:
        raise Rebuilt  # scripts say so, and train
    conf = config.of_facts(checkpoint.facts(folder, epoch)["config"], folder)
    restored = checkpoint.restore(folder, epoch, *state(conf))
    facts = checkpoint.facts(folder, epoch)
    found = epoch, facts, as_facts(dict(enumerate(jax.tree.leaves(restored))))
    if epoch != conf.epochs:
        raise Rebuilt  # trained on from the one before
    return found


@functools.cache
def state(conf: config.Config) -> Any:
    """Variables and optimizer state of a network, as shapes."""
    model = RECIPES[conf.model].build(conf, 2)
    x = jnp.zeros((1, 28, 28, 2))
    optimizer = loop.adam(conf.learning_rate, 12, 6)

    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return variables, jax.eval_shape(optimizer.init, variables["params"])


def of_sweep(folder: Path) -> Any:
    result = SweepResult.load(folder)
    assert result.overlaps is not None and result.title is not None
    return as_facts(result), result.summary()


def of_comparison(folder: Path) -> Any:
    found = Comparison.load(folder)
    return as_facts(found), found.summary()


def of_network(folder: Path) -> Any:
    small = load_compact(folder)
    logits = np.asarray(small(small.example))
    about = small.input_shape, str(small.layers), str(small.proof), logits.tobytes()
    return as_facts(flatten_dict(small.variables)), about, artefact.read(folder)[1]


def of_shrink(folder: Path) -> Any:
    if not (folder / "state.json").exists():
        raise Rebuilt
    found = measured.read(Journal(folder / "state.json", SHRUNK), "estimated")
    return json.loads(json.dumps(found, default=dataclasses.asdict))


SHRUNK: dict[str, Any] = {}  # the key of the network that was shrunk


def of_budgets(folder: Path) -> Any:
    """What becomes of images in smaller networks; the budgets are in another file."""
    if not (folder / "images.npz").exists():
        raise Rebuilt
    found = budgets.read(folder)
    assert found is not None
    return {
        "labels": digest(found.labels),
        "class_names": found.class_names,
        "thumbnails": [digest(each) for each in found.thumbnails],
        **{n: [digest(a) for a in outcome] for n, outcome in found.outcomes.items()},
    }


def of_times(folder: Path) -> Any:
    known = Clock(folder).known
    if not known:
        raise Rebuilt
    return known


def of_decoded(folder: Path) -> Any:
    missing = mock.patch.object(tfds, "_prepare", side_effect=Rebuilt)
    with missing, mock.patch.object(tfds, "_find_prepared", return_value=None):
        found = [
            tfds.load("cifar10", s, cache_dir=str(folder)) for s in ("train", "test")
        ]
    return [(digest(np.asarray(i)), digest(lab), names) for i, lab, names in found]


KERAS = PairCNN(widths=(2, 3, 4), dense=(5, 2))
KERAS_X = jnp.ones((1, 8, 8, 2))


def of_keras(folder: Path) -> Any:
    """Of a run directory that begins with the file, which it knows by its sum."""
    path = folder / "model.h5"
    (field,) = (f for f in dataclasses.fields(config.Config) if f.name == "init_from")
    found = config.parse(field, str(path))
    shapes = jax.eval_shape(KERAS.init, jax.random.key(0), KERAS_X)
    network = from_linen(KERAS, shapes, KERAS_X, train=False)
    variables = import_keras(path, network, KERAS_X)
    if found != KERAS_SUM[0]:
        raise InputError("another file")
    return as_facts(flatten_dict(variables))


KERAS_SUM: list[str] = []


def of_lock(folder: Path) -> Any:
    """Left by a killed process, and read by one that finds it held."""
    assert "process" in lock._holder(folder / ".holder")
    lock.hold(folder)
    lock.release()
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def kinds(made, tmp_path_factory):
    """The kinds of files, by name."""
    run, other = made
    SHRUNK.update(json.loads((run / "shrink/state.json").read_text())["key"])
    root = tmp_path_factory.mktemp("kinds")
    keras = root / "keras"
    keras.mkdir()
    variables = random_variables(KERAS, KERAS_X)
    keras_files.pair(variables, KERAS_X.shape[1:]).save(keras / "model.h5")
    KERAS_SUM.append(f"sha256:{sha256(keras / 'model.h5')}")
    plant_cifar10(root)
    held = root / "held"
    held.mkdir()
    about = {"process": "1 on here", "since": "then", "command": "train"}
    (held / ".lock").touch()
    (held / ".holder").write_text(json.dumps(about))
    times = root / "times"
    clock = Clock(times)
    clock.known = {f"layer {i}": i / 7 for i in range(20)}
    clock.save()
    (kept,) = times.iterdir()
    return {
        "config": Kind(run, "config.json", of_config, other),
        "checkpoint": Kind(run / "checkpoints", "2/**/*", of_checkpoint,
                           other / "checkpoints"),
        "sweep": Kind(run / SWEEP, "s*.*[vzn]", of_sweep, other / SWEEP,
                      "summary.json"),
        "comparison": Kind(run / "criteria-conv3-bias", "*.*[vzn]", of_comparison, None,
                           "summary.json"),
        "network": Kind(run / NETWORK, "*", of_network, other / NETWORK, "spec.json"),
        "shrink": Kind(run / "shrink", "state.json", of_shrink, None, "state.json"),
        "budgets": Kind(run / "shrink", "images.npz", of_budgets),
        "times": Kind(times, "*", of_times, None, kept.name),
        "unfinished": _unfinished(root / "unfinished"),
        "decoded": Kind(root / "planted", "cifar10/*/*", of_decoded),
        "keras": Kind(keras, "*", of_keras),
        "lock": Kind(held, ".[lh]o*", of_lock),
    }  # fmt: skip


def _unfinished(folder: Path) -> Kind:
    """What a sweep of a known network leaves until it is saved."""
    apply, variables, split = planted()
    tapped = tap_layer(apply, variables, split, tap="relu", batch_size=8)
    scores = criteria.mean(tapped.mean_feature_map)
    kept = sweep_checkpoint.SweepCheckpoint(folder, {"data": "planted"})
    with mock.patch.object(sweep_checkpoint, "_SECONDS", 0.0), \
         mock.patch.object(sizes, "_CPU_ELEMENTS", 100):  # fmt: skip
        layer.sweep_layer(tapped, scores, checkpoint=kept)
    fill = resolve_fill("zero", layer=tapped.name, bias=tapped.bias)
    plan = Plan(pruning_order(scores), tuple(range(4)), fill)

    def load(folder: Path) -> Any:
        mine = dataclasses.replace(kept, folder=folder, name="sweep-0")
        found = list(sweep_checkpoint.SweepCheckpointer(mine, tapped, plan).finished())
        ranges = {
            f[:2]: (digest(f.values["class"]), digest(f.losses), f[4]) for f in found
        }
        if folder != kept.folder and len(ranges) < len(whole):
            assert ranges.items() <= whole.items()
            raise Rebuilt
        return ranges

    whole = load(folder)
    assert len(whole) > 2
    return Kind(folder, "*", load)


# Of these, only scripts read files, which say what the system says in one line.
OF_SCRIPTS = ("config", "shrink", "lock")


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", DAMAGES)
def test_damages(name, kinds, tally, tmp_path, capsys):
    """1,000 in all."""
    tally.kind = f"damages: {name}"
    kind = kinds[name]
    expected = kind.load(_copy(kind.source, tmp_path / "whole"))
    for seed in range(trials(DAMAGES[name])):
        rng = np.random.default_rng([seed, *name.encode()])
        folder = _copy(kind.source, tmp_path / "trial")
        resealed = kind.record is not None and rng.random() < 0.15
        if resealed:
            what = reseal(folder / kind.record, rng)
        else:
            what = _damage(kind, folder, rng)
        tally.add(*_outcome(name, kind, folder, expected, resealed, what))
        shutil.rmtree(folder)
    tally.close()


def _copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))


def _damage(kind: Kind, folder: Path, rng: np.random.Generator) -> str:
    """Damages one of the kind's files."""
    paths = sorted(p for p in folder.glob(kind.files) if p.is_file())
    path = paths[rng.integers(len(paths))]
    others = [p for p in paths if p != path and rng.random() < 0.3]
    if kind.twin is not None:
        others += [kind.twin / path.relative_to(folder)] * 3
    return damage(path, rng, [p for p in others if p.is_file()])


def _outcome(
    name: str, kind: Kind, folder: Path, expected: Any, resealed: bool, what: str
) -> tuple[str, str]:
    """How the load ended, and what is to be said of it."""
    what = f"{name}: {what}"
    try:
        found = kind.load(folder)
    except Rebuilt:
        return "rebuilt", what
    except InputError as error:
        line = str(error)
        return (
            "traceback" if "\n" in line or not line else "refused"
        ), f"{what} {line}"
    except OSError as error:
        return ("refused" if name in OF_SCRIPTS else "traceback"), f"{what} {error!r}"
    except Exception:
        return "traceback", f"{what} {traceback.format_exc()[-900:]}"
    if found == expected:
        return "equal", what
    return ("believed" if resealed else "wrong"), f"{what}: {found!r:.500}"
