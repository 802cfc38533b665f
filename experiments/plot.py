r"""Draws the pictures of every sweep in a run directory again, from saved files alone.

python -m experiments.plot --workdir=runs/cifar_vgg --order=rank --normalize=each
"""

from pathlib import Path

from absl import flags

from experiments import cli
from jaxprune.errors import InputError, check_choice
from jaxprune.report import curves as plots
from jaxprune.report import feature_maps as plots_maps
from jaxprune.sweep.result import SweepResult

FLAGS = flags.FLAGS
flags.DEFINE_string("order", "channel", f"Tiles by: {', '.join(plots_maps.ORDERS)}.")
flags.DEFINE_string(
    "normalize", "shared", f"Scale of the tiles: {', '.join(plots_maps.SCALES)}."
)
flags.DEFINE_integer(
    "confusion_k",
    None,
    "K of the second confusion matrix. Default: largest within a point.",
)


def main() -> None:
    """Draws every picture."""
    if FLAGS.workdir is None:
        raise InputError("say which run with --workdir")
    check_choice("order", FLAGS.order, plots_maps.ORDERS)
    check_choice("normalize", FLAGS.normalize, plots_maps.SCALES)
    workdir = Path(FLAGS.workdir)
    folders = sorted(path.parent for path in workdir.glob("sweep-*/summary.json"))
    if not folders:
        raise InputError(f"{workdir} holds no sweep: run experiments.sweep first")
    results = [SweepResult.load(folder) for folder in folders]
    k = FLAGS.confusion_k
    if k is not None and not all(k in result.ks for result in results):
        raise InputError(f"--confusion_k={k} is not in every sweep of {workdir}")
    for folder, result in zip(folders, results, strict=True):
        for path in plots.draw_sweep(
            result,
            folder,
            order=FLAGS.order,
            normalize=FLAGS.normalize,
            k=k,
        ):
            print(path)
    groups: dict[str, list[SweepResult]] = {}
    for result in results:
        key = f"{result.about['layer'].replace('/', '.')}-{result.about['criterion']}"
        groups.setdefault(key, []).append(result)
    for key, group in groups.items():
        if len(group) > 1:
            print(plots.save(plots.compare_fills(group), workdir / f"fills-{key}.png"))
    for path in plots.draw_training(workdir):
        print(path)


if __name__ == "__main__":
    cli.run(main)
