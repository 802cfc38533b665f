r"""Measures the sweep, evaluation and training beside what people would use instead.

    python -m experiments.bench --init_from=cifar_vgg.h5 --data_dir=...
    pip install -e '.[bench]'        # PyTorch beside it

cifar_vgg only. Every measurement runs in a process of its own, one after another. Slow
loops are measured for a few K on some of the images and extrapolated; the table says
so. Writes bench.csv and bench.png to the run directory. 30 minutes on 2 CPU cores;
`--images=1000 --runs=1` gives a first look in five.
"""

import csv
import dataclasses
import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import bench_ours, cli, cluster, job, train
from experiments.bench_ours import Bench
from experiments.job import Job
from jaxprune.channels import taps
from jaxprune.errors import InputError
from jaxprune.files import replacing
from jaxprune.report import bench as plots_bench
from jaxprune.report import curves as plots

FLAGS = flags.FLAGS
flags.DEFINE_integer("images", None, "Images of the whole sweep. Default: all.", 1)
flags.DEFINE_integer("some_images", 1024, "Images that slow loops are measured on.", 1)
flags.DEFINE_list("loop_ks", ["0", "200", "400"], "K that slow loops are measured for.")
flags.DEFINE_integer("runs", 3, "Timed runs of each measurement.", 1)
flags.DEFINE_bool("scaling", True, "Measure how time and memory grow, too.")
flags.DEFINE_string("measure", None, "What this process measures: used by itself.")
flags.DEFINE_integer("channels", None, "Channels of that layer: used by itself.")

_LABELS = {
    ("jaxprune", "sweep"): "sweep",
    ("jaxprune", "dense"): "sweep, every pair",
    ("jaxprune", "cached_trunk"): "loop over K, trunk kept",
    ("jaxprune", "one_pass"): "loop over K, one full pass each",
    ("PyTorch", "cached_trunk"): "loop over K, trunk kept",
    ("PyTorch", "one_pass"): "loop over K, one full pass each",
}
_COLUMNS = (
    "by", "what", "images", "channels", "devices", "seconds", "lowest", "highest",
    "compile_seconds", "measured_share", "peak_memory_mb",
)  # fmt: skip


def main() -> None:
    """Measures everything, or, in a child process, one thing."""
    FLAGS.set_default("model", "cifar_vgg")
    if FLAGS.model != "cifar_vgg":
        raise InputError("experiments.bench measures --model=cifar_vgg only")
    run = job.load(train_imported=False)
    if FLAGS.measure:
        print(json.dumps(_measure(run)))
        return
    ks = _loop_ks()
    if max(ks) >= run.config.widths[-1]:
        raise InputError(f"--loop_ks={max(ks)}: the layer has {run.config.widths[-1]}")
    if FLAGS.images and FLAGS.images > len(run.splits.test):
        raise InputError(f"--images: there are {len(run.splits.test)} test images")
    train.train_or_restore(run)
    rows = [_child(by, what) for by, what in _plan()]
    _print(rows)
    scaling = _scaling(run.config.widths[-1]) if FLAGS.scaling else []
    _print_scaling(scaling)
    _save(run.workdir, rows, scaling)


def _loop_ks() -> list[int]:
    try:
        return [int(k) for k in FLAGS.loop_ks]
    except ValueError:
        raise InputError(f"--loop_ks takes a,b,c; got {FLAGS.loop_ks}") from None


def _plan() -> list[tuple[str, str]]:
    plan = [("jaxprune", what) for what in bench_ours.MEASURES]
    if importlib.util.find_spec("torch") is None:
        print("without PyTorch: pip install 'jaxprune[bench]' measures it beside")
        return plan
    return [*plan, *(("PyTorch", w) for w in bench_ours.MEASURES if w in _TORCH)]


_TORCH = ("evaluation", "training", "one_pass", "cached_trunk")


def _measure(run: Job) -> dict[str, Any]:
    """What this process was started for."""
    by, what = FLAGS.measure.split(":")
    split = run.splits.test
    split = split.select(np.arange(FLAGS.images or len(split)))
    if what == "scaling":
        # Drawn weights: the width is not that of the checkpoint.
        widths = (*run.config.widths[:-1], FLAGS.channels)
        run = dataclasses.replace(run, model=run.model.clone(widths=widths))
        variables = jax.device_get(run.init())
    else:
        variables = jax.device_get(train.train_or_restore(run))
    bench = Bench(
        run=run,
        variables=variables,
        split=split,
        some=split.select(np.arange(min(FLAGS.some_images, len(split)))),
        layer=taps.last_conv(run.apply, run.shapes, run.example),
        runs=FLAGS.runs,
        loop_ks=_loop_ks(),
    )
    if by == "PyTorch":
        from experiments import bench_torch

        row = bench_torch.MEASURES[what](bench)
    else:
        measure = "sweep" if what == "scaling" else what
        row = bench_ours.MEASURES[measure](bench)
        row["devices"] = cluster.local_mesh().size
        if what == "sweep":
            row["multiply_adds"] = bench_ours.multiply_adds(bench)
    memory = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in memory:
        row["peak_memory_mb"] = memory["peak_bytes_in_use"] / 2**20
    else:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        row["peak_memory_mb"] = kilobytes / 1024
    row["images"] = len(split)
    row["channels"] = bench.channels
    row["device"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return row


def _child(by: str, what: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    command = [
        sys.executable, "-m", "experiments.bench", *sys.argv[1:],
        f"--measure={by}:{what}", *arguments,
    ]  # fmt: skip
    print(f"measuring {by}, {what} ...", flush=True)
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        line = next((x for x in reversed(lines) if "rror" in x), lines[-1])
        raise InputError(f"measuring {by}, {what} failed: {line}")
    row = json.loads(done.stdout.strip().splitlines()[-1])
    measured = row.get("measured", 1.0)
    seconds = np.array(row["seconds"]) / measured
    return {
        **row,
        "by": by,
        "what": what,
        "seconds": float(np.median(seconds)),
        "lowest": float(seconds.min()),
        "highest": float(seconds.max()),
        "measured_share": measured,
        "extrapolated": measured < 1 or bool(row.get("extrapolated")),
    }


def _scaling(p: int) -> list[dict[str, Any]]:
    """The sweep as images, channels and devices double; weights drawn at random."""
    images = min(FLAGS.some_images, FLAGS.images or FLAGS.some_images)

    def measure(n: int, channels: int, devices: int | None = None) -> dict[str, Any]:
        environment = {}
        arguments = [f"--images={n}", f"--channels={channels}", "--runs=1"]
        if devices:
            arguments.append(f"--devices={devices}")
            if jax.default_backend() == "cpu":
                flag = f"--xla_force_host_platform_device_count={devices}"
                flag = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
                environment["XLA_FLAGS"] = flag.strip()
        return _child("jaxprune", "scaling", *arguments, **environment)

    rows = [measure(n, p) for n in (images // 4, images // 2, images)]
    rows += [measure(images, p // 4), measure(images, p // 2)]
    on_cpu = jax.default_backend() == "cpu"
    counts = [d for d in (2, 4, 8) if on_cpu or d <= jax.local_device_count()]
    return rows + [measure(images, p, d) for d in counts]


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The figures that matter, each a ratio of two of this run."""
    at = {(row["by"], row["what"]): row for row in rows}
    ours = at["jaxprune", "sweep"]
    trunk, head = ours["multiply_adds"]
    floor = ours["images"] * trunk + ours["pairs_evaluated"] * head
    floor /= at["jaxprune", "matmul"]["rate"]
    found = {"sweep / floor": ours["seconds"] / floor}
    seconds = {key: row["seconds"] for key, row in at.items()}
    sweep = seconds["jaxprune", "sweep"]
    for by in ("jaxprune", "PyTorch"):
        if (by, "evaluation") not in at:
            continue
        found |= {
            f"sweep / one {by} evaluation": sweep / seconds[by, "evaluation"],
            f"{by}: the report's loop / sweep": 2 * seconds[by, "one_pass"] / sweep,
            f"{by}: one pass for each K / sweep": seconds[by, "one_pass"] / sweep,
            f"{by}: loop with the trunk kept / sweep": seconds[by, "cached_trunk"]
            / sweep,
        }
    found["every pair / sweep"] = seconds["jaxprune", "dense"] / sweep
    if ("PyTorch", "evaluation") in at:
        for what in ("evaluation", "training"):
            found[f"{what}, images/s over PyTorch's"] = (
                seconds["PyTorch", what] / seconds["jaxprune", what]
            )
    return found


def _print(rows: list[dict[str, Any]]) -> None:
    ours = next(r for r in rows if (r["by"], r["what"]) == ("jaxprune", "sweep"))
    print(f"\n{ours['device']}, {ours['images']} images, {ours['channels']} channels")
    print(f"{'':44}{'seconds':>10}{'lowest':>10}{'highest':>10}{'compile':>9}{'MB':>8}")
    for row in rows:
        label = _LABELS.get((row["by"], row["what"]), row["what"])
        note = " *" if row["extrapolated"] else ""
        print(
            f"{row['by'] + ', ' + label + note:44}{row['seconds']:>10.3f}"
            f"{row['lowest']:>10.3f}{row['highest']:>10.3f}"
            f"{row.get('compile_seconds', 0):>9.1f}{row['peak_memory_mb']:>8.0f}"
        )
    print("* measured for a few K or images, and extrapolated\n")
    rate = next(r["rate"] for r in rows if r["what"] == "matmul")
    print(f"matrix product: {2 * rate / 1e9:.0f} GFLOP/s")
    share = ours["pairs_evaluated"] / ours["pairs"]
    print(f"pairs evaluated: {share:.1%} of {ours['pairs']}")
    for name, value in ratios(rows).items():
        print(f"{name:44}{value:>10.2f}")


def _print_scaling(rows: list[dict[str, Any]]) -> None:
    if rows:
        print("\nimages  channels  devices   seconds  peak MB")
    for row in rows:
        print(
            f"{row['images']:>6}{row['channels']:>10}{row['devices']:>9}"
            f"{row['seconds']:>10.2f}{row['peak_memory_mb']:>9.0f}"
        )
    if rows and jax.default_backend() == "cpu":
        print(f"(the CPU devices are virtual and share {os.cpu_count()} cores)")


def _save(
    workdir: Path, rows: list[dict[str, Any]], scaling: list[dict[str, Any]]
) -> None:
    with replacing(workdir / "bench.csv") as path, open(path, "w") as file:
        table = csv.DictWriter(
            file, _COLUMNS, extrasaction="ignore", restval="", lineterminator="\n"
        )
        table.writeheader()
        table.writerows([*rows, *scaling])
    bars = [
        (f"{row['by']}: {_LABELS[key]}", row["seconds"], row["extrapolated"])
        for row in rows
        if (key := (row["by"], row["what"])) in _LABELS
    ]
    report = [
        (f"{row['by']}: the report's loop, two passes each", 2 * row["seconds"], True)
        for row in rows
        if row["what"] == "one_pass"
    ]
    evaluations = [
        (f"{row['by']}: one plain evaluation", row["seconds"], False)
        for row in rows
        if row["what"] == "evaluation"
    ]
    figure = plots_bench.bars([*evaluations, *bars, *report], _title(rows))
    plots.save(figure, workdir / "bench.png")
    print(f"files:       {workdir}/bench.csv, bench.png")


def _title(rows: list[dict[str, Any]]) -> str:
    row = rows[0]
    return f"{row['images']} images, {row['channels']} channels; {row['device']}"


if __name__ == "__main__":
    cli.run(main)
