r"""Measures this project beside what people would use instead.

    pip install -e '.[bench]'        # PyTorch, Torch-Pruning
    python -m experiments.bench --init_from=cifar_vgg.h5 --data_dir=...
    python -m experiments.bench --what=shrink --init_from=cifar_vgg.h5 \
        --finetune_epochs=3 --finetune_images=4000 --distill
    python -m experiments.bench --what=shrink --model=cifar_resnet --speedup=2

The first is --what=sweep: the sweep, evaluation and training of cifar_vgg. Every
measurement has a process of its own, which loads, compiles and warms up. Those that are
compared then take turns, one timed run each, so that a machine that becomes slower is
slower for all of them. Slow loops are measured for a few K on some of the images and
extrapolated; the table says so. Writes bench.csv, bench_ratios.csv and bench.png to the
run directory. The whole takes about half an hour on 2 CPU cores;
`--images=1000 --runs=1` is enough for a first look.

--what=shrink cuts a whole network by this project and by Torch-Pruning (group L2 and
Taylor importance, global and isomorphic) to the same multiply-adds; see
`experiments.bench.shrink`. Writes bench-speedup<speedup>/ (networks.csv, networks.png,
summary.json). With the flags above it takes about an hour on 2 CPU cores.
"""

import dataclasses
import importlib.util
import os
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.bench import ours, report
from experiments.bench.measure import Bench, Prepared
from experiments.bench.plan import OURS, PYTORCH, RACES, Key, Measured
from experiments.bench.race import race, serve
from jaxprune._base.errors import InputError, check_choice
from jaxprune.cli import cluster, finetuning, process, provenance, run_directory
from jaxprune.cli.flags import (
    check_timing,
    define_epochs,
    define_images,
    define_network,
    define_timing,
    define_widths,
)
from jaxprune.cli.weights import train_or_restore

FLAGS = flags.FLAGS
define_network()
define_epochs()
define_images()
define_timing()
define_widths()
flags.DEFINE_string("what", "sweep", "What is measured: sweep, shrink.")
flags.DEFINE_integer("images", None, "Images of the whole sweep. Default: all.", 1)
flags.DEFINE_integer("some_images", 1024, "Images that slow loops are measured on.", 1)
flags.DEFINE_list("loop_ks", ["0", "200", "400"], "K that slow loops are measured for.")
flags.DEFINE_integer("runs", 3, "Timed runs of each measurement.", 1)
flags.DEFINE_bool("scaling", True, "Measure how time and memory grow, too.")
flags.DEFINE_string("measure", None, "What this process measures: used by itself.")
flags.DEFINE_integer("channels", None, "Channels of that layer: used by itself.")
flags.DEFINE_string("networks", None, "Folder of networks: used by itself.")

# The flags that play a part in one benchmark alone.
ONLY = {
    "sweep": ("images", "some_images", "loop_ks", "runs", "scaling"),
    "shrink": (
        "eval_split", "calibration_split", "allow_overlap", "finetune_epochs",
        "finetune_learning_rate", "finetune_images", "distill", "distill_temperature",
        "distill_weight", "repeats", "latency_batches", "speedup", "batch",
        "keep_whole", "multiple_of",
    ),
}  # fmt: skip


def main() -> None:
    """Measures everything, or, in a child process, one thing."""
    # On a GPU, a process must leave memory to those that it takes turns with.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    check_choice("benchmark", FLAGS.what, ONLY)
    for what, names in ONLY.items():
        if what != FLAGS.what:
            finetuning.refuse(names, f"--what={what}")
    FLAGS.set_default("model", "cifar_vgg")
    if FLAGS.what == "shrink":
        _shrink()
    else:
        _sweep()


def _shrink() -> None:
    FLAGS.set_default("speedup", 2.0)
    FLAGS.set_default("latency_batches", ["1", "32"])
    for name, package in (("torch", "PyTorch"), ("torch_pruning", "Torch-Pruning")):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"--what=shrink needs {package}: pip install 'jaxprune[bench]'"
            )
    from experiments.bench.shrink import contest, latency

    if FLAGS.measure:
        by, _ = FLAGS.measure.split(":")
        serve(lambda: latency.prepare(by, check_timing()))
    else:
        contest.main()


def _sweep() -> None:
    if FLAGS.model != "cifar_vgg":
        raise InputError("--what=sweep measures --model=cifar_vgg only")
    if FLAGS.measure:
        serve(_prepare)
        return
    run = run_directory.load(train_imported=False)
    cluster.require_one_process("experiments.bench")
    ks = _loop_ks()
    if max(ks) >= run.training.widths[-1]:
        raise InputError(
            f"--loop_ks={max(ks)}: the layer has {run.training.widths[-1]}"
        )
    if FLAGS.images and FLAGS.images > len(run.splits.test):
        raise InputError(f"--images: there are {len(run.splits.test)} test images")
    train_or_restore(run)
    measured: dict[Key, Measured] = {}
    races = _races()
    total = sum(len(keys) for keys in races) * (FLAGS.runs + 1)
    with cluster.progress(total=total, unit="run", desc="measurements") as bar:
        for keys in races:
            measured |= race(keys, FLAGS.runs, on_run=bar.update)
    report.show(measured)
    scaling = _scaling(run.training.widths[-1]) if FLAGS.scaling else []
    report.show_scaling(scaling)
    report.save(run.workdir, measured, scaling)
    names = ("bench.png", "bench_ratios.csv", "bench.csv")
    process.finish(*(run.workdir / name for name in names))


def _loop_ks() -> list[int]:
    try:
        return [int(k) for k in FLAGS.loop_ks]
    except ValueError:
        raise InputError(f"--loop_ks takes a,b,c; got {FLAGS.loop_ks}") from None


def _races() -> list[tuple[Key, ...]]:
    """The races, without PyTorch where it is not installed."""
    if importlib.util.find_spec("torch") is not None:
        return list(RACES)
    print("PyTorch is not installed: pip install 'jaxprune[bench]' measures it, too")
    return [tuple(key for key in keys if key[0] != PYTORCH) for keys in RACES]


def _prepare() -> tuple[Prepared, dict[str, Any]]:
    """What this process was started for, and facts for its row."""
    by, what = FLAGS.measure.split(":")
    run = run_directory.load(
        train_imported=False, alone=False
    )  # the parent holds the folder
    split = run.splits.test
    split = split.select(np.arange(FLAGS.images or len(split)))
    if what == "scaling":
        # Drawn weights: the width is not that of the checkpoint.
        widths = (*run.training.widths[:-1], FLAGS.channels)
        run = dataclasses.replace(run, model=run.model.clone(widths=widths))
        variables = jax.device_get(run.init())
    else:
        variables = jax.device_get(train_or_restore(run))
    bench = Bench(
        run=run,
        variables=variables,
        split=split,
        some=split.select(np.arange(min(FLAGS.some_images, len(split)))),
        layer=run.network().graph().last_conv(),
        loop_ks=_loop_ks(),
    )
    about = {
        "images": len(split),
        "channels": bench.channels,
        "device": provenance.device(),
    }
    if by == PYTORCH:
        from experiments.bench import pytorch

        return pytorch.MEASURES[what](bench), about
    about["devices"] = cluster.local_mesh().size
    return ours.MEASURES[what](bench), about


def _scaling(p: int) -> list[Measured]:
    """The sweep as images, channels and devices double; weights drawn at random."""
    images = min(FLAGS.some_images, FLAGS.images or FLAGS.some_images)

    def measure(n: int, channels: int, devices: int | None = None) -> Measured:
        environment = {}
        arguments = [f"--images={n}", f"--channels={channels}"]
        if devices:
            arguments.append(f"--devices={devices}")
            if jax.default_backend() == "cpu":
                flag = f"--xla_force_host_platform_device_count={devices}"
                flag = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
                environment["XLA_FLAGS"] = flag.strip()
        key = (OURS, "scaling")
        return race((key,), 1, arguments, environment)[key]

    cases: list[tuple[int, ...]] = [(images // 4, p), (images // 2, p), (images, p)]
    cases += [(images, p // 4), (images, p // 2)]
    on_cpu = jax.default_backend() == "cpu"
    counts = [d for d in (2, 4, 8) if on_cpu or d <= jax.local_device_count()]
    cases += [(images, p, devices) for devices in counts]
    rows = []
    with cluster.progress(total=len(cases), unit="run", desc="scaling") as bar:
        for case in cases:
            rows.append(measure(*case))
            bar.update()
    return rows


if __name__ == "__main__":
    process.run(main)
