r"""Ranks a layer's channels and measures the network with the k lowest pruned.

    python -m experiments.sweep --model=digits_pair
    python -m experiments.sweep --model=mnist_pair --data_dir=...
    python -m experiments.sweep --model=cifar_vgg --init_from=my_model.h5 --fill=all

Trains first where the run directory has no trained network. Writes one folder per
sweep, `sweep-<layer>-<criterion>-<fill>`. digits_pair takes 2 minutes on 2 CPU cores,
training included, and begins at a balanced accuracy near 0.9.
"""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from experiments import cli, cluster, job, train
from experiments.job import Job
from jaxprune import processes
from jaxprune.channels import taps
from jaxprune.data import datasets
from jaxprune.data.splits import Split, check_classes
from jaxprune.errors import InputError, check_choice
from jaxprune.networks import checkpoint
from jaxprune.ranking import order as ranking
from jaxprune.report import curves as plots
from jaxprune.sweep import layer as sweep
from jaxprune.sweep.result import SweepResult
from jaxprune.sweep.trunk import TappedLayer, tap_layer

FLAGS = flags.FLAGS
flags.DEFINE_string("layer", None, "Convolution to prune. Default: the last one.")
flags.DEFINE_string(
    "criterion", None, f"Score of a channel: {', '.join(ranking.CRITERIA)}."
)
flags.DEFINE_string(
    "tap", None, f"Where the feature map is taken: {', '.join(taps.TAPS)}."
)
flags.DEFINE_string(
    "fill", None, f"What a pruned channel becomes: {', '.join(sweep.FILLS)}, or all."
)
flags.DEFINE_string("rank_split", "test", "Images that channels are scored on.")
flags.DEFINE_string("eval_split", "test", "Images that predictions are made for.")
flags.DEFINE_string("ks", None, "Numbers of pruned channels, start:stop:step or a,b,c.")
flags.DEFINE_integer("mask_chunk", None, "Masks evaluated at once.", lower_bound=1)

_PACKAGES = ("jaxprune", "jax", "jaxlib", "flax", "optax", "numpy")


def main() -> None:
    """Trains or restores, ranks, sweeps, saves and draws."""
    check_names()
    run = job.load(train_imported=False)
    split = datasets.choose_split(run.splits, FLAGS.eval_split)
    rank_split = datasets.choose_split(run.splits, FLAGS.rank_split)
    check_classes(split, FLAGS.eval_split)
    batch_size = run.batch_size(split)
    name = FLAGS.layer or taps.last_conv(run.apply, run.shapes, run.example)
    layer = taps.find_conv(run.apply, run.shapes, run.example, name)
    ks = ranking.check_ks(parse_ks(layer.shape[-1]), layer.shape[-1])

    variables = train.train_or_restore(run)
    facts = describe(run, variables)
    folders = _folders(run, layer.name, ks, facts)
    try:
        tapped = _tap(run, variables, split, rank_split, layer.name, batch_size)
        results = _sweep(tapped, variables, folders, ks, facts)
    except KeyboardInterrupt:
        raise cli.Interrupted(
            f"interrupted: the trained network is kept in {run.checkpoints}, finished "
            "sweeps beside it; the same command begins this sweep again"
        ) from None
    if not processes.is_first():
        return
    plots.draw_training(run.workdir)
    if len(results) > 1:
        name = f"fills-{layer.name.replace('/', '.')}-{facts['criterion']}.png"
        plots.save(plots.compare_fills(results), run.workdir / name)
        print(f"curves:      {run.workdir / name}")


def _tap(
    run: Job,
    variables: Any,
    split: Split,
    rank_split: Split,
    layer: str,
    batch_size: int,
) -> TappedLayer:
    """Runs the trunk."""
    same = FLAGS.rank_split == FLAGS.eval_split
    sources = [split] if same else [split, rank_split]
    total = sum(len(processes.own(len(source))) for source in sources)
    with cluster.progress(total=total, unit="img", desc="feature maps") as bar:
        return tap_layer(
            run.apply,
            variables,
            split,
            layer=layer,
            tap=FLAGS.tap or run.config.recipe.tap,
            rank_split=None if same else rank_split,
            batch_size=batch_size,
            mesh=cluster.local_mesh(),
            on_images=bar.update,
        )


def _sweep(
    tapped: TappedLayer,
    variables: Any,
    folders: dict[str, Path],
    ks: tuple[int, ...],
    facts: dict[str, Any],
) -> list[SweepResult]:
    """Sweeps with each fill, saves, draws and prints."""
    scores = ranking.CRITERIA[facts["criterion"]](tapped.mean_feature_map)
    results: list[SweepResult] = []
    for fill, folder in folders.items():
        total = len(tapped.own) * len(ks)
        with cluster.progress(total=total, unit="eval", desc=f"fill {fill}") as bar:
            result = sweep.sweep_layer(
                tapped,
                variables,
                scores,
                fill=fill,
                ks=ks,
                mask_chunk=FLAGS.mask_chunk,
                about=facts,
                on_pairs=bar.update,
            )
        if processes.is_first():
            result.save(folder)
            plots.draw_sweep(result, folder)
        if not results:
            _print_scores(result)
        _print_curve(result, folder)
        results.append(result)
    return results


def check_names() -> None:
    """Checks names that need no data, before any work is done."""
    if FLAGS.criterion is not None:
        check_choice("criterion", FLAGS.criterion, ranking.CRITERIA)
    if FLAGS.fill is not None:
        check_choice("fill", FLAGS.fill, (*sweep.FILLS, "all"))
    if FLAGS.tap is not None:
        check_choice("tap", FLAGS.tap, taps.TAPS)


def parse_ks(p: int) -> Sequence[int]:
    """--ks as Python's range(start, stop, step), or a comma-separated list."""
    text = FLAGS.ks
    if text is None:
        return range(p)
    try:
        if ":" not in text:
            return [int(k) for k in text.split(",")]
        parts = [int(part) if part else None for part in text.split(":")]
        start, stop, step = (*parts, None, None)[:3]
        if len(parts) > 3 or (step is not None and step < 1):
            raise ValueError
    except ValueError:
        raise InputError(f"--ks takes start:stop:step or a,b,c; got '{text}'") from None
    return range(start or 0, p if stop is None else stop, step or 1)


def describe(run: Job, variables: Any) -> dict[str, Any]:
    """What a reader must know to trust or repeat the sweep."""
    recipe = run.config.recipe
    return {
        "model": run.config.model,
        "dataset": run.config.dataset,
        "criterion": FLAGS.criterion or recipe.criterion,
        "tap": FLAGS.tap or recipe.tap,
        "rank_split": FLAGS.rank_split,
        "eval_split": FLAGS.eval_split,
        "dtype": run.config.dtype,
        "seed": run.config.seed,
        "weights": checkpoint.fingerprint(variables),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the source this runs from, if it lies in a git repository."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        here = Path(__file__).parent
        return subprocess.check_output(
            command, cwd=here, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def differences(saved: SweepResult, facts: dict[str, Any]) -> list[str]:
    """What a saved sweep was made with that is otherwise now."""
    return [
        f"{key} is {saved.about.get(key)!s:.24}, not {facts[key]!s:.24}"
        for key in ("weights", "tap", "rank_split", "eval_split", "dtype")
        if saved.about.get(key) != facts[key]
    ]


def _folders(
    run: Job, layer: str, ks: tuple[int, ...], facts: dict[str, Any]
) -> dict[str, Path]:
    """Each fill's folder, unless one holds a sweep made otherwise."""
    fill = FLAGS.fill or run.config.recipe.fill
    name = f"sweep-{layer.replace('/', '.')}-{facts['criterion']}"
    folders = {
        f: run.workdir / f"{name}-{f}"
        for f in (sweep.FILLS if fill == "all" else [fill])
    }
    for folder in folders.values():
        if not (folder / "summary.json").exists():
            continue
        saved = SweepResult.load(folder)
        found = differences(saved, facts)
        if saved.ks != ks:
            found.append(f"it has {len(saved.ks)} values of K, not these {len(ks)}")
        if found:
            raise InputError(
                f"{folder} holds another sweep: {'; '.join(found)}. Remove it, "
                "or give another --workdir"
            )
    return folders


def _print_scores(result: SweepResult) -> None:
    """The lowest and highest channels with their scores, as the report prints them."""
    scores, order = result.scores, result.order

    def listing(channels: Iterable[int]) -> str:
        return ", ".join(f"{c}: {scores[c]:.4f}" for c in channels)

    print(f"layer {result.about['layer']}, {len(order)} channels, channel: score")
    print(f"  lowest     {listing(order[:5])}")
    print(f"  highest    {listing(order[::-1][:5])}")


def _print_curve(result: SweepResult, folder: Path) -> None:
    accuracy, balanced = result.accuracy, result.balanced_accuracy
    k = result.largest_k_within(0.01)
    row = result.ks.index(k)
    print(f"fill {result.about['fill']}")
    print(f"  K = {result.ks[0]:<6} accuracy {accuracy[0]:.4f}", end="")
    print(f"  balanced accuracy {balanced[0]:.4f}")
    print(f"  K = {k:<6} accuracy {accuracy[row]:.4f}", end="")
    print(f"  balanced accuracy {balanced[row]:.4f}  (largest K within one point)")
    print(f"  files      {folder}/")


if __name__ == "__main__":
    cli.run(main)
