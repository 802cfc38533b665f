"""One network for each seed, trained and swept, and how far their curves differ."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxprune._base import processes
from jaxprune._base.errors import InputError
from jaxprune._base.files import replacing_folder, write_text
from jaxprune.cli import process, run_directory
from jaxprune.cli.pruning_options import stem
from jaxprune.cli.settings import NetworkSettings, flag
from jaxprune.recipes import config
from jaxprune.report import style
from jaxprune.report.seeds import compare_seeds
from jaxprune.results.confidence import mean_interval
from jaxprune.results.result import SweepResult


@dataclass(frozen=True, kw_only=True)
class SeedSettings(NetworkSettings):
    """Several networks, of which each has a seed."""

    seeds: tuple[str, ...] | None = flag(
        "Train and sweep one network for each, in folders seed<n> of the run directory."
    )


OfSeeds = TypeVar("OfSeeds", bound=SeedSettings)


def sweep_each(settings: OfSeeds, sweep: Callable[[OfSeeds], Any]) -> None:
    """Sweeps the network of every seed of --seeds, and writes what they have in common.

    Args:
      settings: of all seeds.
      sweep: trains where it must and sweeps, as the settings of a seed say; a result
        for each fill or criterion.

    Raises:
      InputError: --seeds that are not two or more different numbers, other flags that
        fix the network, or a seed's run directory of another configuration.
    """
    seeds, base = _parse(settings), run_directory.directory(settings)
    each = [
        replace(
            settings,
            workdir=str(base / f"seed{seed}"),
            overrides={**settings.overrides, "seed": seed},
        )
        for seed in seeds
    ]
    for own in each:
        run_directory.resolve(own, train_imported=False)  # raises first
    by_seed: list[list[SweepResult]] = []
    try:
        for seed, own in zip(seeds, each, strict=True):
            print(f"seed {seed}: {own.workdir}")
            by_seed.append(sweep(own))
    except process.Interrupted as end:
        raise process.Interrupted(
            f"{end}; {len(by_seed)} of {len(seeds)} seeds are finished"
        ) from None
    made: list[Path] = []
    for results in _shared(by_seed):
        about = results[0].about
        name = f"seeds-{stem(about['layer'], about['criterion'])}-{about['fill']}"
        folder = base / name
        summary = summarize(seeds, results)
        if processes.is_first():
            _write(folder, seeds, results, summary)
        _print(folder, summary)
        made += [folder / "seeds.png", folder / "seeds.csv", folder / "summary.json"]
    process.finish(*made)


def _shared(by_seed: Sequence[list[SweepResult]]) -> list[list[SweepResult]]:
    """A row for each criterion and fill that every seed has; one may be left out."""
    made = [
        {(r.about["criterion"], r.about["fill"]): r for r in results}
        for results in by_seed
    ]
    return [
        [results[key] for results in made]
        for key in made[0]
        if all(key in results for results in made)
    ]


def _parse(settings: SeedSettings) -> list[int]:
    texts = settings.seeds or ()
    try:
        seeds = [int(text) for text in texts]
    except ValueError:
        seeds = []
    if len(seeds) < 2 or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError(
            f"--seeds takes two or more different numbers, got {','.join(texts)}"
        )
    for name in ("seed", "init_from"):
        if name in settings.overrides:
            raise InputError(f"--seeds trains a network for each: without --{name}")
    if settings.model is None:
        raise InputError("say which network with --model")
    if config.is_own(settings.model):
        raise InputError(
            f"--seeds trains a network for each: {settings.model} is trained"
        )
    return seeds


def summarize(seeds: Sequence[int], results: Sequence[SweepResult]) -> dict[str, Any]:
    """The spread of what is read off the seeds' curves; JSON-able."""
    first = results[0]
    safe = [r.largest_safe_k(r.max_drop) for r in results]
    naive = [r.largest_k_within(r.max_drop) for r in results]
    facts = ("model", "dataset", "layer", "criterion", "fill", "tap", "max_drop",
             "rank_split", "select_split", "eval_split", "overlaps")  # fmt: skip
    return {
        **{name: first.about[name] for name in facts},
        "seeds": list(seeds),
        "weights": [r.about["weights"] for r in results],
        "largest_safe_k": _spread(safe),
        "largest_k_within": _spread(naive),
        "baseline_accuracy": _spread([float(r.accuracy[0]) for r in results]),
        "accuracy_at_safe_k": _spread(
            [r.at(k)["accuracy"] for r, k in zip(results, safe, strict=True)]
        ),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """All values, their mean with a 95 % interval, and their standard deviation."""
    mean, (low, high) = mean_interval(np.array(values, float)[:, None])
    return {
        "each": list(values),
        "lowest": min(values),
        "highest": max(values),
        "mean": float(mean[0]),
        "mean_interval": [float(low[0]), float(high[0])],
        "standard_deviation": float(np.std(values, ddof=1)),
    }


def _write(
    folder: Path,
    seeds: Sequence[int],
    results: Sequence[SweepResult],
    summary: dict[str, Any],
) -> None:
    """Writes seeds.csv, seeds.png and summary.json."""
    tables = [result.columns() for result in results]
    columns: dict[str, np.ndarray] = {}
    for name in ("accuracy", "balanced_accuracy", "cross_entropy"):
        values = np.stack([table[name] for table in tables])
        mean, (low, high) = mean_interval(values)
        columns |= {f"{name}_mean": mean, f"{name}_low": low, f"{name}_high": high}
        columns |= {
            f"{name}_seed{seed}": row for seed, row in zip(seeds, values, strict=True)
        }
    with replacing_folder(folder) as new:
        with open(new / "seeds.csv", "w", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["k", *columns])
            for row, k in enumerate(results[0].ks):
                texts = (f"{column[row]:.6f}" for column in columns.values())
                rows.writerow([k, *texts])
        style.save(compare_seeds(seeds, results), new / "seeds.png")
        write_text(new / "summary.json", json.dumps(summary, indent=2) + "\n")


def _print(folder: Path, summary: dict[str, Any]) -> None:
    what = f"criterion {summary['criterion']}, fill {summary['fill']}"
    print(f"{len(summary['seeds'])} seeds, {what}")
    for name in ("largest_safe_k", "largest_k_within", "baseline_accuracy"):
        found = summary[name]
        each = " ".join(f"{value:.4g}" for value in found["each"])
        print(f"  {name.replace('_', ' '):<18} {each}  (mean {found['mean']:.4g})")
    print(f"  files      {folder}/")
