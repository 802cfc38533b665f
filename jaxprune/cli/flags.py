"""The flags that several scripts share, in groups; a script has those it asks for.

A group is defined once in a process, however many scripts are imported there. Flags
of one script alone are defined in that script.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from absl import flags

from jaxprune._base.errors import InputError, check_choice
from jaxprune.fills.fill import FILLS
from jaxprune.ranking.criteria import CRITERIA
from jaxprune.recipes.config import Config
from jaxprune.recipes.recipe import RECIPES
from jaxprune.sweep.maps import KINDS
from jaxprune.sweep.taps import TAPS

FLAGS = flags.FLAGS
EXPORTS = ("stablehlo",)
_DEFINE: dict[Any, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
}


def value(name: str) -> Any:
    """A flag's value; None where the script has no such flag."""
    return FLAGS[name].value if name in FLAGS else None


@functools.cache
def define_workdir() -> None:
    """Where the run directory is."""
    flags.DEFINE_string("workdir", None, "Run directory. Default: runs/<model>.")


@functools.cache
def define_network() -> None:
    """Which network, the data that it is trained on, and the devices of this process.

    A field of the configuration whose flag is not given has the value that config.json
    holds or, in a new run directory, the recipe's.
    """
    define_workdir()
    for field in dataclasses.fields(Config):
        text = field.metadata["help"]
        if field.name == "model":
            text = (
                f"Experiment: {', '.join(RECIPES)}; or my_package.my_module:build, a "
                "function that returns a network of your own: (linen model, variables, "
                "example, keyword arguments of its call)."
            )
        define = _DEFINE.get(field.type, flags.DEFINE_list)
        lowest = field.metadata["at_least"]
        limit = {} if lowest is None else {"lower_bound": lowest}
        define(field.name, None, text, **limit)
    flags.DEFINE_string(
        "data", None,
        "Images for a network of your own: an .npz file (images, labels and, if they "
        "have names, class_names), or a TFDS name.",
    )  # fmt: skip
    flags.DEFINE_string(
        "data_dir", None, "Prepared TFDS datasets. Default: TFDS's own."
    )
    flags.DEFINE_string(
        "cache_dir", None, "Decoded arrays. Default: ~/.cache/jaxprune."
    )
    flags.DEFINE_integer("devices", None, "Devices of each process. Default: all.")
    flags.DEFINE_bool(
        "compilation_cache", True, "Keep compiled programs for next time."
    )
    flags.DEFINE_bool("wandb", False, "Mirror training to Weights & Biases.")


@functools.cache
def define_processes() -> None:
    """Several processes that run the script together."""
    flags.DEFINE_string(
        "coordinator", None, "host:port of process 0, for several hosts."
    )
    flags.DEFINE_integer("num_processes", None, "Processes that run together.", 1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.", 0)


@functools.cache
def define_batch_size() -> None:
    """How much is evaluated at once."""
    flags.DEFINE_integer(
        "batch_size", None, "Images evaluated at once. Default: 128 on CPU, or 1024.", 1
    )


@functools.cache
def define_finetuning() -> None:
    """Flags of recalibration, fine-tuning, distillation; see `cli.finetuning`."""
    flags.DEFINE_bool("recalibrate", False, "Estimate BatchNorm statistics again.")
    define_epochs()


@functools.cache
def define_epochs() -> None:
    """Training after pruning."""
    flags.DEFINE_integer("finetune_epochs", 0, "Epochs of training after pruning.", 0)
    flags.DEFINE_float(
        "finetune_learning_rate", None,
        "Its highest. Default: a tenth of training's.", 0.0,
    )  # fmt: skip
    flags.DEFINE_integer(
        "finetune_images", None,
        "The first of the training split to fine-tune on. Default: all.", 1,
    )  # fmt: skip
    flags.DEFINE_bool("distill", False, "Fine-tune on the whole network's predictions.")
    flags.DEFINE_float(
        "distill_temperature", 4.0, "Divides both networks' logits in --distill."
    )
    flags.DEFINE_float(
        "distill_weight", 1.0,
        "Of the whole network in the loss of --distill, labels having the rest: with "
        "1, no label is used.", 0.0, 1.0,
    )  # fmt: skip


@functools.cache
def define_images() -> None:
    """The images that networks are measured on, and those that fits are made on."""
    flags.DEFINE_string("eval_split", "test", "Images that predictions are made for.")
    flags.DEFINE_string(
        "calibration_split", "train[:512]",
        "Images without labels that fill linear, or a smaller network, is fitted on.",
    )  # fmt: skip
    flags.DEFINE_bool(
        "allow_overlap", False, "Let the calibration split hold images of eval_split."
    )


@functools.cache
def define_max_drop() -> None:
    """The flag of the largest loss allowed."""
    flags.DEFINE_float(
        "max_drop", None,
        "Be 95 % sure to lose less accuracy than this. In a sweep, default: 0.01.",
        0.0, 1.0,
    )  # fmt: skip


@functools.cache
def define_smaller() -> None:
    """How far a network is pruned, how it is timed and in which form it is written."""
    define_max_drop()
    flags.DEFINE_string("export", None, f"Also write: {', '.join(EXPORTS)}.")
    define_timing()


@functools.cache
def define_timing() -> None:
    """How smaller networks are timed."""
    flags.DEFINE_integer("repeats", 10, "Timed calls at each batch size.", 1)
    flags.DEFINE_list("latency_batches", ["1", "32", "256"], "Batch sizes to time.")


def check_smaller() -> list[int]:
    """The batch sizes to time.

    Raises:
      InputError: they are no positive numbers, or an unknown form is to be written.
    """
    if FLAGS.export is not None:
        check_choice("export", FLAGS.export, EXPORTS)
    return check_timing()


def check_timing() -> list[int]:
    """The batch sizes to time.

    Raises:
      InputError: they are no positive numbers.
    """
    try:
        batches = [int(text) for text in FLAGS.latency_batches]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise InputError(
            f"--latency_batches takes positive numbers: {FLAGS.latency_batches}"
        )
    return batches


@functools.cache
def define_widths() -> None:
    """How a whole network's widths are chosen for a budget of multiply-adds."""
    flags.DEFINE_float("speedup", None, "How many times fewer multiply-adds.")
    flags.DEFINE_integer("batch", 32, "Images in a batch that layers are timed at.", 1)
    flags.DEFINE_list(
        "keep_whole", [], "Groups, or layers, of which nothing is pruned."
    )
    flags.DEFINE_integer(
        "multiple_of", None,
        "Widths are multiples of this. Default: what is faster on this machine.", 1,
    )  # fmt: skip


@functools.cache
def define_choices() -> None:
    """Which channels are pruned, what they become, and on which images."""
    define_images()
    flags.DEFINE_string(
        "layer", None,
        "Convolution to prune. Default: the last; of cifar_resnet the last block's "
        "first.",
    )  # fmt: skip
    flags.DEFINE_string(
        "criterion", None,
        f"Score of a channel: {', '.join(CRITERIA)}; in a sweep also all, or several.",
    )  # fmt: skip
    flags.DEFINE_integer(
        "oracle_images", None,
        "Ranking images that oracle measures losses on. Default: 2000, or all.",
        1,
    )  # fmt: skip
    flags.DEFINE_integer(
        "greedy_images", None,
        "The same of greedy_oracle. Default: as many as oracle_images.", 1,
    )  # fmt: skip
    flags.DEFINE_enum(
        "maps", "disk", KINDS,
        "Feature maps until they are evaluated: in a temporary file, or made twice.",
    )  # fmt: skip
    flags.DEFINE_string("maps_dir", None, "Folder of that file.")
    flags.DEFINE_string(
        "tap", None, f"Where the feature map is taken: {', '.join(TAPS)}."
    )
    flags.DEFINE_string(
        "fill", None,
        f"What a pruned channel becomes: {', '.join(FILLS)}; in a sweep also all.",
    )  # fmt: skip
    flags.DEFINE_string("rank_split", "test", "Images that channels are scored on.")
    flags.DEFINE_string(
        "select_split", None, "Images that K is chosen on. Default: eval_split."
    )
    flags.DEFINE_float(
        "ridge",
        None,
        "Of fill linear, in units of the mean variance. Default: "
        "the smallest leave-one-out error.",
    )
    flags.DEFINE_string(
        "ks", None, "Numbers of pruned channels, start:stop:step or a,b,c."
    )
