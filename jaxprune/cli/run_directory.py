"""A run directory's data and network, ready for use."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from jaxprune._base import processes
from jaxprune._base.errors import InputError, check_choice
from jaxprune.adapters.linen import from_linen, plain
from jaxprune.cli import cluster, lock, user_images, user_network
from jaxprune.cli.settings import NetworkSettings
from jaxprune.data import datasets
from jaxprune.data.splits import Split
from jaxprune.graph.fast import with_fast_convolutions
from jaxprune.graph.network import Network
from jaxprune.graph.sizes import usual_batch_size
from jaxprune.recipes import config
from jaxprune.recipes.config import AnyConfig, Config, UserConfig
from jaxprune.recipes.recipe import RECIPES, Defaults, Recipe
from jaxprune.tasks.classes import classification
from jaxprune.tasks.task import Task
from jaxprune.training import checkpoint


@dataclass(frozen=True)
class Run:
    """A run: configuration, data and network of a run directory.

    Attributes:
      settings: those it was loaded with.
      config: configuration of the weights.
      workdir: the run directory.
      splits: the images.
      whole: the network, on scaled images: with its weights where it comes trained,
        with their shapes where they are trained or imported here.
      defaults: layer, criterion, tap and fill where no flag says otherwise.
      channels_first: whether the network takes [N, C, H, W], unlike the images.
      inputs: shapes [1, ...] and types of the arrays that it takes, where it takes
        several; None where it takes images.
      task: what its outputs are for.
    """

    settings: NetworkSettings
    config: AnyConfig
    workdir: Path
    splits: datasets.Splits
    whole: Network
    defaults: Defaults
    channels_first: bool = False
    inputs: Any = None
    task: Task = dataclasses.field(default_factory=classification)

    @property
    def comes_trained(self) -> bool:
        """Whether it is a user's network, which has its weights."""
        return isinstance(self.config, UserConfig)

    def check_drop(self, max_drop: float | None) -> None:
        """Raises InputError if --max_drop is more than there is of an accuracy."""
        if max_drop is not None and self.task.measure == "accuracy" and max_drop > 1:
            raise InputError(f"--max_drop={max_drop:g}: accuracy lies in 0 .. 1")

    @property
    def training(self) -> Config:
        """How the network is trained.

        Raises:
          InputError: it is a user's network, and the flags do not say.
        """
        if isinstance(self.config, Config):
            return self.config
        raise InputError(
            f"{self.config.model} comes trained: there is no recipe to train it by"
        )

    @property
    def recipe(self) -> Recipe:
        """The recipe of the model."""
        return RECIPES[self.training.model]

    @property
    def model(self) -> nn.Module:
        """The recipe's linen model, which is trained."""
        model: nn.Module = self.whole.origin.model
        return model

    @property
    def l2(self) -> Mapping[str, float]:
        """Coefficient of each layer's L2 penalty in training."""
        return self.recipe.l2(self.training)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return checkpoints(self.workdir)

    @cached_property
    def mesh(self) -> Mesh:
        """The mesh over the devices of this process."""
        return cluster.local_mesh(self.settings.devices)

    @property
    def image(self) -> Any:
        """One black image, or several inputs of zeros, for tracing."""
        if self.inputs is not None:
            return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), self.inputs)
        first = self.splits.first
        return jnp.zeros((1, *first.image_shape), first.images.dtype)

    def scale(self, images: Any) -> Any:
        """Images [N, H, W, C] -> what the network takes: (pixel - mean) / std.

        Several inputs are taken as they are.
        """
        if self.inputs is not None:
            return images
        mean = jnp.asarray(self.config.pixel_mean, jnp.float32)
        std = jnp.asarray(self.config.pixel_std, jnp.float32)
        scaled = (images.astype(jnp.float32) - mean) / std
        return jnp.moveaxis(scaled, -1, 1) if self.channels_first else scaled

    def apply(self, variables: Any, images: Any) -> Any:
        """The network's output for images as they are."""
        return self._fast.function(variables, self.scale(images))

    @cached_property
    def _fast(self) -> Network:
        """The network as images are evaluated."""
        return with_fast_convolutions(self.whole) if self.comes_trained else self.whole

    def network(self, variables: Any = None) -> Network:
        """The network on images as they are; by default with `whole`'s parameters."""
        if variables is None:
            return self._network
        return self._network.with_params(plain(variables))

    @cached_property
    def _network(self) -> Network:
        return Network(self.apply, self.whole.params, self.image)

    def init(self) -> Any:
        """Freshly drawn variables."""
        key = jax.random.key(self.config.seed)
        return jax.jit(self.model.init)(key, self.scale(self.image))

    def batch_size(self, split: Split) -> int:
        """Images to evaluate at once."""
        given = self.settings.batch_size
        if given is None:
            return min(usual_batch_size(self.network()), len(split))
        if given > len(split):
            raise InputError(
                f"--batch_size={given} is more than the split's {len(split)} images"
            )
        return given


def load(settings: NetworkSettings, *, train_imported: bool, alone: bool = True) -> Run:
    """Resolves the configuration, see `resolve`, and loads its data.

    Args:
      settings: the network, its data and the devices.
      train_imported: whether weights from --init_from are trained on by default.
      alone: whether to hold the run directory, until the script ends.

    Raises:
      InputError: as `resolve`; or another process is at work in the run directory.
    """
    cluster.start(settings)
    workdir = directory(settings)
    if alone and processes.is_first():
        lock.hold(workdir)
    name = settings.model
    if name is None and (saved := _saved(workdir)) is not None:
        name = saved.model
    if name is not None and config.is_own(name):
        return _own(settings, workdir, name)
    conf = resolve(settings, train_imported=train_imported)
    for flag in ("data", "image_size", "task", "output", "ignore"):
        if getattr(settings, flag) is not None:
            raise InputError(
                f"--{flag} is for a network of your own, --model=my_module:build or "
                f"net.keras; {conf.model} takes --dataset"
            )
    splits = datasets.load(
        conf.dataset,
        data_dir=settings.data_dir,
        cache_dir=settings.cache_dir,
        seed=conf.seed,
        source_images=conf.source_images,
        train_pairs=conf.train_pairs,
        test_pairs=conf.test_pairs,
    )
    recipe = RECIPES[conf.model]
    _check_images(conf, splits, recipe.smallest_image)
    whole = untrained(conf, splits)
    return Run(settings, conf, workdir, splits, whole, recipe.defaults(conf))


def untrained(conf: Config, splits: datasets.Splits) -> Network:
    """A recipe's network on scaled images, with shapes for its weights."""
    first = splits.first
    model = RECIPES[conf.model].build(conf, len(first.class_names))
    image = jax.ShapeDtypeStruct((1, *first.image_shape), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return from_linen(model, shapes, image, train=False)


def _own(settings: NetworkSettings, workdir: Path, name: str) -> Run:
    """The run of a user's network, as the settings and the run directory agree."""
    folder = user_images.folder(settings)
    task = user_network.task_of(settings, _saved(workdir))
    network = user_network.build(name, settings.image_size, task)
    dataset = user_images.described(settings.data, network, folder)
    given = user_network.given(settings, name, network, dataset)
    saved = _saved(workdir)
    if saved is not None and _has_results(workdir):
        config.check_same(saved, given, workdir)
    elif saved is not None and config.differences(saved, given):
        saved = None  # of a command that was refused
    conf = saved if isinstance(saved, UserConfig) else user_network.configure(given)
    splits = user_images.images(settings, conf, network, folder)
    if network.inputs is None:
        _check_images(conf, splits)
        first = bool(network.channels_first(splits.first.image_shape))
    else:
        _check_unscaled(conf)
        first = False
    if first:
        print(f"{name} takes channels first: images [H, W, C] are given as [C, H, W]")
    return Run(
        settings, conf, workdir, splits, network.network, user_network.DEFAULTS, first,
        network.inputs, task,
    )  # fmt: skip


def checkpoints(workdir: Path) -> Path:
    """Where a run directory's checkpoints lie."""
    return workdir / "checkpoints"


def directory(settings: NetworkSettings) -> Path:
    """The run directory that the settings name.

    Raises:
      InputError: they name none, or an unknown model.
    """
    name = settings.model
    if name is None and settings.workdir is None:
        raise InputError(
            f"say which network with --model: {', '.join(RECIPES)}; or "
            "my_module:build, a function that returns one of your own; or its file"
        )
    if name is not None and config.is_own(name):
        name = user_network.folder_name(name)
    elif name is not None:
        check_choice("model", name, RECIPES)
    return Path(settings.workdir or f"runs/{name}")


def resolve(settings: NetworkSettings, *, train_imported: bool) -> Config:
    """The configuration that the settings and the run directory agree on.

    In a new run directory, flags override the recipe. In one with a network, flags that
    are given must equal what it was made with. Nothing is written.

    Args:
      settings: the run directory, and the fields that are given.
      train_imported: whether weights from --init_from are trained on by default.

    Raises:
      InputError: unknown model, values out of range, or a run directory of another
        configuration, or whose config.json is not that of its checkpoint; the
        differences are listed.
    """
    workdir, given = directory(settings), dict[str, Any]()
    if settings.model is not None:
        given["model"] = settings.model
    for field in dataclasses.fields(Config):
        if field.name in settings.overrides:
            given[field.name] = config.parse(field, settings.overrides[field.name])
    saved = _saved(workdir)
    if saved is not None:
        config.check_same(saved, given, workdir)
        if isinstance(saved, Config):
            return saved
    if settings.model is None:
        raise InputError(f"{workdir} holds no run: say which with --model")
    if "init_from" in given and not train_imported:
        given.setdefault("epochs", 0)
    defaults = RECIPES[settings.model].config
    conf = dataclasses.replace(defaults, **given)
    config.check(conf, defaults)
    return conf


def _saved(workdir: Path) -> AnyConfig | None:
    """The configuration of a run directory: its checkpoint's, or config.json.

    None where there is neither.
    """
    path, folder = workdir / "config.json", checkpoints(workdir)
    epoch = checkpoint.latest(folder)
    made_with: AnyConfig | None = None
    if epoch is not None:
        facts = checkpoint.facts(folder, epoch)
        made_with = config.of_facts(facts.get("config", {}), folder / str(epoch))
    if not path.exists():
        return made_with
    conf = config.read(path)
    if made_with is not None:
        found = config.differences(conf, dataclasses.asdict(made_with))
        if found:
            raise InputError(
                f"{path} is not what {folder / str(epoch)} was made with: "
                f"{'; '.join(found)}. Remove {path.name}, and the checkpoint's is taken"
            )
    try:
        if isinstance(conf, Config):
            check_choice("model", conf.model, RECIPES)
            config.check(conf, RECIPES[conf.model].config)
        else:
            config.check_numbers(conf)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return conf


def _has_results(workdir: Path) -> bool:
    """Whether a run directory holds more than its configuration."""
    return any(
        path.name != "config.json" and not path.name.startswith(".")
        for path in workdir.iterdir()
    )


def _check_images(conf: AnyConfig, splits: datasets.Splits, smallest: int = 1) -> None:
    """Raises InputError if the network or its pixel scaling does not fit the images."""
    height, width, channels = splits.first.image_shape
    if min(height, width) < smallest:
        raise InputError(
            f"{conf.model} needs images of at least {smallest} pixels a side, "
            f"{conf.dataset} has {height} x {width}"
        )
    for name in ("pixel_mean", "pixel_std"):
        if len(getattr(conf, name)) not in (1, channels):
            raise InputError(
                f"--{name} takes 1 or {channels} numbers for {conf.dataset}, got "
                f"{list(getattr(conf, name))}"
            )


def _check_unscaled(conf: AnyConfig) -> None:
    """Raises InputError if pixels are to be scaled where a network has other inputs."""
    if conf.pixel_mean != (0.0,) or conf.pixel_std != (1.0,):
        raise InputError(
            f"--pixel_mean and --pixel_std are of images alone, and {conf.model} takes "
            "several inputs: scale them in its function"
        )


def kept(run: Run) -> str:
    """The message of an interrupted sweep."""
    network = f"the trained network is kept in {run.checkpoints}, and "
    return (
        f"interrupted: {network if not run.comes_trained else ''}every finished sweep "
        f"is kept in {run.workdir}; run the same command again to go on with this one"
    )
