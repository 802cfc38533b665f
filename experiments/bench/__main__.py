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

--what=host measures what Python costs in a sweep, on a network so narrow that the
device has next to nothing to do; see `experiments.bench.host`. A minute.

--what=rules compares the accuracy of smaller networks, straight after the cut, with
that of the rules of other papers; see `experiments.bench.rules`. Writes bench-rules/
(rules.csv, rules.png, summary.json). An hour for cifar_vgg, whose dense layers of 4,096
and 1,024 channels take most of it; what is finished is kept.

--what=shrink cuts a whole network by this project and by Torch-Pruning (group L2 and
Taylor importance, global and isomorphic) to the same multiply-adds; see
`experiments.bench.shrink`. Writes bench-speedup<speedup>/ (networks.csv, networks.png,
summary.json). With the flags above it takes about an hour on 2 CPU cores.
"""

import dataclasses
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.bench import host, ours, report
from experiments.bench.measure import Bench, Prepared
from experiments.bench.plan import OURS, PYTORCH, RACES, Key, Measured
from experiments.bench.race import race, serve
from experiments.bench.rules import compare
from experiments.bench.rules.compare import RulesSettings
from experiments.bench.shrink.stages import ContestSettings
from jaxprune._base.errors import InputError, check_choice
from jaxprune.cli import cluster, process, provenance, run_directory
from jaxprune.cli.settings import flag
from jaxprune.cli.weights import train_or_restore

# The flags that play a part in one benchmark alone.
ONLY = {
    "sweep": ("images", "some_images", "loop_ks", "runs", "scaling"),
    "host": ("images", "runs"),
    "rules": (
        "eval_split", "calibration_split", "allow_overlap", "keep_whole",
        "multiple_of", "curves", "budgets",
    ),
    "shrink": (
        "eval_split", "calibration_split", "allow_overlap", "finetune_epochs",
        "finetune_learning_rate", "finetune_images", "distill", "distill_temperature",
        "distill_weight", "repeats", "latency_batches", "speedup", "batch",
        "keep_whole", "multiple_of", "curves",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings(ContestSettings, RulesSettings):
    """Settings of the benchmarks."""

    model: str | None = "cifar_vgg"
    speedup: float | None = 2.0
    latency_batches: tuple[str, ...] = ("1", "32")
    what: str = flag("What is measured: sweep, host, rules, shrink.", default="sweep")
    images: int | None = flag("Images of the whole sweep. Default: all.", at_least=1)
    some_images: int = flag(
        "Images that slow loops are measured on.", at_least=1, default=1024
    )
    loop_ks: tuple[str, ...] = flag(
        "K that slow loops are measured for.", default=("0", "200", "400")
    )
    runs: int = flag("Timed runs of each measurement.", at_least=1, default=3)
    scaling: bool = flag("Measure how time and memory grow, too.", default=True)
    measure: str | None = flag("What this process measures: used by itself.")
    channels: int | None = flag("Channels of that layer: used by itself.")
    networks: str | None = flag("Folder of networks: used by itself.")


def main(settings: Settings) -> None:
    """Measures everything, or, in a child process, one thing."""
    # On a GPU, a process must leave memory to those that it takes turns with.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    check_choice("benchmark", settings.what, ONLY)
    for what, names in ONLY.items():
        if what != settings.what:
            others = [name for name in names if name not in ONLY[settings.what]]
            settings.refuse(others, f"--what={what}")
    if settings.what == "shrink":
        _shrink(settings)
    elif settings.what == "rules":
        compare.main(settings)
    elif settings.what == "host":
        folder = run_directory.directory(settings)
        folder.mkdir(parents=True, exist_ok=True)
        host.main(settings.images or 10_000, settings.runs, folder)
    else:
        _sweep(settings)


def _shrink(settings: Settings) -> None:
    for name, package in (("torch", "PyTorch"), ("torch_pruning", "Torch-Pruning")):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"--what=shrink needs {package}: pip install 'jaxprune[bench]'"
            )
    from experiments.bench.shrink import contest, latency

    if settings.measure and settings.networks:
        by, _ = settings.measure.split(":")
        networks = Path(settings.networks) / by
        serve(lambda: latency.prepare(settings, by, networks))
    else:
        contest.main(settings)


def _sweep(settings: Settings) -> None:
    if settings.model != "cifar_vgg":
        raise InputError("--what=sweep measures --model=cifar_vgg only")
    if settings.measure:
        by, what = settings.measure.split(":")
        serve(lambda: _prepare(settings, by, what))
        return
    run = run_directory.load(settings, train_imported=False)
    cluster.require_one_process("experiments.bench")
    ks = _loop_ks(settings)
    if max(ks) >= run.training.widths[-1]:
        raise InputError(
            f"--loop_ks={max(ks)}: the layer has {run.training.widths[-1]}"
        )
    count = len(run.splits["test"])
    if settings.images and settings.images > count:
        raise InputError(f"--images: there are {count} test images")
    train_or_restore(run)
    measured: dict[Key, Measured] = {}
    races = _races()
    total = sum(len(keys) for keys in races) * (settings.runs + 1)
    with cluster.progress(total=total, unit="run", desc="measurements") as bar:
        for keys in races:
            measured |= race(keys, settings.runs, on_run=bar.update)
    report.show(measured)
    scaling = _scaling(settings, run.training.widths[-1]) if settings.scaling else []
    report.show_scaling(scaling)
    report.save(run.workdir, measured, scaling)
    names = ("bench.png", "bench_ratios.csv", "bench.csv")
    process.finish(*(run.workdir / name for name in names))


def _loop_ks(settings: Settings) -> list[int]:
    texts = list(settings.loop_ks)
    try:
        return [int(k) for k in texts]
    except ValueError:
        raise InputError(f"--loop_ks takes a,b,c; got {texts}") from None


def _races() -> list[tuple[Key, ...]]:
    """The races, without PyTorch where it is not installed."""
    if importlib.util.find_spec("torch") is not None:
        return list(RACES)
    print("PyTorch is not installed: pip install 'jaxprune[bench]' measures it, too")
    return [tuple(key for key in keys if key[0] != PYTORCH) for keys in RACES]


def _prepare(settings: Settings, by: str, what: str) -> tuple[Prepared, dict[str, Any]]:
    """What this process was started for, and facts for its row."""
    run = run_directory.load(
        settings, train_imported=False, alone=False
    )  # the parent holds the folder
    split = run.splits["test"]
    split = split.select(np.arange(settings.images or len(split)))
    if what == "scaling":
        # Drawn weights: the width is not that of the checkpoint.
        *others, last = run.training.widths
        widths = (*others, settings.channels or last)
        conf = dataclasses.replace(run.training, widths=widths)
        whole = run_directory.untrained(conf, run.splits)
        run = dataclasses.replace(run, config=conf, whole=whole)
        variables = jax.device_get(run.init())
    else:
        variables = jax.device_get(train_or_restore(run))
    bench = Bench(
        run=run,
        variables=variables,
        split=split,
        some=split.select(np.arange(min(settings.some_images, len(split)))),
        layer=run.network().graph().last_conv(),
        loop_ks=_loop_ks(settings),
    )
    about = {
        "images": len(split),
        "channels": bench.channels,
        "device": provenance.device(),
    }
    if by == PYTORCH:
        from experiments.bench import pytorch

        return pytorch.MEASURES[what](bench), about
    about["devices"] = run.mesh.size
    return ours.MEASURES[what](bench), about


def _scaling(settings: Settings, p: int) -> list[Measured]:
    """The sweep as images, channels and devices double; weights drawn at random."""
    images = min(settings.some_images, settings.images or settings.some_images)

    def measure(n: int, channels: int, devices: int | None = None) -> Measured:
        environment = {}
        arguments = [f"--images={n}", f"--channels={channels}"]
        if devices:
            arguments.append(f"--devices={devices}")
            if jax.default_backend() == "cpu":
                option = f"--xla_force_host_platform_device_count={devices}"
                options = f"{os.environ.get('XLA_FLAGS', '')} {option}"
                environment["XLA_FLAGS"] = options.strip()
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
