"""Settings of the commands: groups of fields, of which flags are made, and parsed once.

A command's `Settings` inherit the groups that it needs. What it calls is handed them,
and names the group that it reads.
"""

import dataclasses
import functools
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from absl import flags

from jaxprune._base.errors import InputError
from jaxprune.fills.fill import FILLS
from jaxprune.ranking.criteria import CRITERIA
from jaxprune.recipes import config
from jaxprune.recipes.recipe import RECIPES
from jaxprune.shrinking.curves import CURVES
from jaxprune.sweep.maps import KINDS
from jaxprune.sweep.taps import TAPS
from jaxprune.tasks.ready import TASKS

EXPORTS = ("stablehlo", "onnx", "keras")
# A field of settings, of which a flag is made.
flag = functools.partial(config.flag, default=None)
AnySettings = TypeVar("AnySettings", bound="Settings")
_DEFINE: dict[Any, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    tuple: flags.DEFINE_list,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a command.

    Each field that is made by `flag` has a flag of its name. A subclass may give it
    another default. A tuple's flag takes words with commas between them.

    Attributes:
      given: names of the flags that the command line has.
    """

    given: frozenset[str] = frozenset()

    def refuse(self, names: Iterable[str], without: str) -> None:
        """Raises InputError if one of the flags is given, which need another."""
        for name in names:
            if name in self.given and getattr(self, name) is not False:
                raise InputError(f"--{name} does nothing without {without}: give both")


@dataclass(frozen=True, kw_only=True)
class WorkdirSettings(Settings):
    """Where the run directory is."""

    workdir: str | None = flag("Run directory. Default: runs/<model>.")


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(WorkdirSettings):
    """Which network, the data that it is trained on, and the devices of this process.

    Attributes:
      overrides: fields of the configuration whose flags are given. The others have the
        values that config.json holds or, in a new run directory, the recipe's.
      task, output, ignore, batch_size, coordinator, num_processes, process_id: None
        where a command has no flags for them.
    """

    model: str | None = flag(
        f"Experiment: {', '.join(RECIPES)}; or a network of your own: "
        "my_package.my_module:build, a function that returns a jaxprune.Network with "
        "an example, a Keras model, or (linen model, variables, example, keyword "
        "arguments of its call); or a file that Keras has saved, net.keras or net.h5."
    )
    overrides: Mapping[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata={
            "of": [f for f in dataclasses.fields(config.Config) if f.name != "model"]
        },
    )
    data: str | None = flag(
        "Images for a network of your own: an .npz file (images, labels and, if they "
        "have names, class_names), a folder of JPEG or PNG images, one subfolder for "
        "each class, or a TFDS name."
    )
    image_size: int | None = flag(
        "Height and width that a folder's images are resized and cropped to. Default: "
        "those of the network's example.",
        at_least=1,
    )
    data_dir: str | None = flag("Prepared TFDS datasets. Default: TFDS's own.")
    cache_dir: str | None = flag("Decoded arrays. Default: ~/.cache/jaxprune.")
    devices: int | None = flag("Devices of each process. Default: all.")
    precision: str | None = flag(
        "Of float32 products, in JAX's words: default (bfloat16 on a TPU, "
        "TensorFloat32 on a GPU), high, highest (float32). Proofs take the highest. "
        "Default: what the platform does.",
        choices=("default", "high", "highest"),
    )
    compilation_cache: bool = flag(
        "Keep compiled programs for next time.", default=True
    )
    wandb: bool = flag("Mirror training to Weights & Biases.", default=False)
    task: str | None = None
    output: str | None = None
    ignore: int | None = None
    batch_size: int | None = None
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class BatchSettings(NetworkSettings):
    """How much is evaluated at once."""

    batch_size: int | None = flag(
        "Images evaluated at once. Default: 128 on a CPU, elsewhere as many as keep "
        "the device busy.",
        at_least=1,
    )


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """What a network's outputs are for."""

    task: str | None = flag(
        "What the outputs of a network of your own are for; its images are an .npz "
        "file with targets [N, ...]. Default: classification.",
        choices=tuple(TASKS),
    )
    output: str | None = flag(
        "Part of its output that the task goes by: a key, or a position."
    )
    ignore: int | None = flag(
        "Target of pixels that do not count, of --task=segmentation, such as 255."
    )


@dataclass(frozen=True, kw_only=True)
class ProcessSettings(NetworkSettings):
    """Several processes that run the command together."""

    coordinator: str | None = flag("host:port of process 0, for several hosts.")
    num_processes: int | None = flag("Processes that run together.", at_least=1)
    process_id: int | None = flag("Which of them this is, from 0 on.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class EpochSettings(Settings):
    """Training after pruning; see `cli.finetuning`."""

    finetune_epochs: int = flag(
        "Epochs of training after pruning.", at_least=0, default=0
    )
    finetune_learning_rate: float | None = flag(
        "Its highest. Default: a tenth of training's; of a network of your own 1e-4.",
        at_least=0.0,
    )
    finetune_split: str | None = flag(
        "Images to fine-tune and recalibrate on. Default: training's, or train."
    )
    finetune_images: int | None = flag(
        "The first of that split to fine-tune on. Default: all.", at_least=1
    )
    finetune_batch_size: int | None = flag(
        "Images in a step of it. Default: training's, or 128.", at_least=1
    )
    distill: bool = flag("Fine-tune on the whole network's predictions.", default=False)
    distill_temperature: float = flag(
        "Divides both networks' logits in --distill.", default=4.0
    )
    distill_weight: float = flag(
        "Of the whole network in the loss of --distill, labels having the rest: with "
        "1, no label is used.",
        at_least=0.0,
        at_most=1.0,
        default=1.0,
    )


@dataclass(frozen=True, kw_only=True)
class ImageSettings(Settings):
    """The images that networks are measured on, and those that fits are made on."""

    eval_split: str = flag(
        "Images that predictions are made for: a split, slices such as test[:10%] or "
        "train[-500:], or several, validation+test.",
        default="test",
    )
    calibration_split: str = flag(
        "Images without labels that fill linear, or a smaller network, is fitted on.",
        default="train[:512]",
    )
    allow_overlap: bool = flag(
        "Let the calibration split hold images of eval_split.", default=False
    )


@dataclass(frozen=True, kw_only=True)
class FinetuningSettings(EpochSettings, ImageSettings):
    """Recalibration, fine-tuning, distillation; see `cli.finetuning`."""

    recalibrate: bool = flag("Estimate BatchNorm statistics again.", default=False)


@dataclass(frozen=True, kw_only=True)
class MaxDropSettings(Settings):
    """The largest loss allowed."""

    max_drop: float | None = flag(
        "Be 95 % sure to lose less accuracy, or of a task's first score, than this. In "
        "a sweep, default: 0.01.",
        at_least=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class TimingSettings(Settings):
    """How smaller networks are timed."""

    repeats: int = flag(
        "Timed calls at each batch size; of calls that take seconds three.",
        at_least=1,
        default=10,
    )
    latency_batches: tuple[str, ...] = flag(
        "Batch sizes to time.", default=("1", "32", "256")
    )

    def batches(self) -> list[int]:
        """The batch sizes to time.

        Raises:
          InputError: they are no positive numbers.
        """
        try:
            batches = [int(text) for text in self.latency_batches]
        except ValueError:
            batches = []
        if not batches or min(batches) < 1:
            raise InputError(
                "--latency_batches takes positive numbers: "
                f"{list(self.latency_batches)}"
            )
        return batches


@dataclass(frozen=True, kw_only=True)
class SmallerSettings(FinetuningSettings, MaxDropSettings, TimingSettings):
    """How far a network is pruned, what follows, and in which form it is written."""

    export: tuple[str, ...] = flag(
        f"Also write: one or several of {', '.join(EXPORTS)}.", default=()
    )


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Whether the report is written."""

    report: bool = flag("Write report.html, see `jaxprune report`.", default=True)


@dataclass(frozen=True, kw_only=True)
class WidthSettings(Settings):
    """How a whole network's widths are chosen for a budget of multiply-adds."""

    speedup: float | None = flag("How many times fewer multiply-adds.")
    batch: int = flag(
        "Images in a batch that layers are timed at.", at_least=1, default=32
    )
    keep_whole: tuple[str, ...] = flag(
        "Groups, or layers, of which nothing is pruned.", default=()
    )
    multiple_of: int | None = flag(
        "Widths are multiples of this. Default: what is faster on this machine.",
        at_least=1,
    )
    curves: str = flag(
        "How the loss of each width is found: estimated for all at once from a "
        "backward pass, or measured group by group, which takes much longer.",
        default=CURVES[0],
        choices=CURVES,
    )


@dataclass(frozen=True, kw_only=True)
class PruningSettings(ImageSettings):
    """Which channels are pruned, what they become, and on which images."""

    layer: str | None = flag(
        "Convolution, or dense layer, to prune. Default: the last convolution; of "
        "cifar_resnet the last block's first."
    )
    criterion: str | None = flag(
        f"Score of a channel: {', '.join(CRITERIA)}; in a sweep also all, or several."
    )
    oracle_images: int | None = flag(
        "Ranking images that oracle measures losses on. Default: 2000, or all.",
        at_least=1,
    )
    greedy_images: int | None = flag(
        "The same of greedy_oracle. Default: as many as oracle_images.", at_least=1
    )
    maps: str | None = flag(
        "Feature maps until they are evaluated: on the device, in a temporary file, or "
        "made twice. Default: device on an accelerator, disk on a CPU; and disk where "
        "they do not fit.",
        choices=KINDS,
    )
    maps_dir: str | None = flag("Folder of that file.")
    tap: str | None = flag(f"Where the feature map is taken: {', '.join(TAPS)}.")
    fill: str | None = flag(
        f"What a pruned channel becomes: {', '.join(FILLS)}; in a sweep also all."
    )
    rank_split: str = flag("Images that channels are scored on.", default="test")
    select_split: str | None = flag("Images that K is chosen on. Default: eval_split.")
    ridge: float | None = flag(
        "Of fill linear, in units of the mean variance. Default: the smallest "
        "leave-one-out error."
    )
    ks: str | None = flag("Numbers of pruned channels, start:stop:step or a,b,c.")


def names(kind: type[Settings]) -> list[str]:
    """The names of the flags of settings."""
    return list(_described(kind))


def define(kind: type[Settings], values: flags.FlagValues) -> None:
    """Defines the flags of settings, among others that are defined already."""
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(kind)}
    for name, (field, module) in _described(kind).items():
        about, default = field.metadata, defaults.get(name)
        options: dict[str, Any] = {"flag_values": values, "module_name": module}
        if about["choices"]:
            flags.DEFINE_enum(name, default, about["choices"], about["help"], **options)
            continue
        if _type(field) in (int, float):
            options |= {
                "lower_bound": about["at_least"],
                "upper_bound": about["at_most"],
            }
        if isinstance(default, tuple):
            default = list(default)
        _DEFINE[_type(field)](name, default, about["help"], **options)


def read(kind: type[AnySettings], values: flags.FlagValues) -> AnySettings:
    """The settings that parsed flags give; ~ is the home of whoever calls."""
    parsed = {name: _expanded(values[name].value) for name in names(kind)}
    given = {name for name in parsed if not values[name].using_default_value}
    found: dict[str, Any] = {"given": frozenset(given)}
    for field in dataclasses.fields(kind):
        if "of" in field.metadata:
            those = {each.name for each in field.metadata["of"]} & given
            found[field.name] = {name: parsed[name] for name in those}
        elif field.name in parsed:
            value = parsed[field.name]
            found[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**found)


def _expanded(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) else value


def _described(kind: type[Settings]) -> dict[str, tuple[dataclasses.Field, str]]:
    """Each flag's field, as it was made, and the module that --helpfull lists it in.

    The groups of this module are listed as its own, others as the command's.
    """
    command = sys.argv[0] if kind.__module__ == "__main__" else kind.__module__
    found: dict[str, tuple[dataclasses.Field, str]] = {}
    for base in reversed(kind.__mro__):
        module = __name__ if base.__module__ == __name__ else command
        for field in vars(base).get("__dataclass_fields__", {}).values():
            for each in field.metadata.get("of", [field]):
                if "help" in each.metadata:
                    found.setdefault(each.name, (each, module))
    return found


def _type(field: dataclasses.Field) -> Any:
    """The type of a flag's value, where it is not None."""
    kind: Any = field.type
    if isinstance(kind, types.UnionType):
        kind = kind.__args__[0]
    return typing.get_origin(kind) or kind
