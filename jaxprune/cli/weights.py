"""A run directory's trained network: restored, imported or trained."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base import processes
from jaxprune._base.errors import InputError
from jaxprune.cli import cluster, process, training_log
from jaxprune.cli.run_directory import Run
from jaxprune.data import datasets
from jaxprune.data.splits import check_classes
from jaxprune.evaluation.predict import compiled, predict
from jaxprune.recipes import config, training
from jaxprune.recipes.config import Config
from jaxprune.recipes.keras_import import import_keras
from jaxprune.results import metrics
from jaxprune.training import checkpoint, loop
from jaxprune.training.augmentation import crop_and_flip
from jaxprune.training.loop import StepMetrics, TrainState

# Images that a file's network is compared with the recipe's on.
_TRIED = 4


def train_or_restore(run: Run) -> Any:
    """The run's trained variables; trains, continues or imports where it must."""
    if run.comes_trained:
        if processes.is_first():
            config.write(run.config, run.workdir)
        return run.whole.params
    done = checkpoint.latest(run.checkpoints)
    lines = training_log.read(run.workdir)
    processes.wait()  # until all have looked: the first may write now
    if lines and processes.is_first():
        training_log.write(run.workdir, lines)
    epochs = run.training.epochs
    if done is not None and done >= epochs:
        print(f"weights: {run.checkpoints / str(done)}")
        return checkpoint.restore(run.checkpoints, done, run.whole.params)[0]
    if epochs == 0:
        variables = _initial(run)
        if processes.is_first():
            config.write(run.config, run.workdir)
            checkpoint.save(run.checkpoints, 0, variables, facts=_facts(run))
        return variables
    if done is None:
        print(f"no checkpoint in {run.checkpoints}: training for {epochs} epochs")
    else:
        checkpoint.check_same_jax(run.checkpoints, done)
        print(f"continuing from epoch {done} of {epochs} in {run.checkpoints}")
    try:
        return _train(run, done, lines)
    except KeyboardInterrupt:
        kept = checkpoint.latest(run.checkpoints)
        what = (
            f"epoch {kept} of {epochs} is kept in" if kept else "no epoch was done in"
        )
        raise process.Interrupted(
            f"interrupted: {what} {run.checkpoints}; run the same command again to "
            "continue"
        ) from None


def _facts(run: Run, lines: Sequence[Any] = ()) -> dict[str, Any]:
    """The facts of a checkpoint."""
    return {"config": dataclasses.asdict(run.config), "log": list(lines)}


def _initial(run: Run) -> Any:
    """Variables before training: drawn, or imported where --init_from says so."""
    if not run.training.init_from:
        return run.init()
    path = run.settings.overrides.get("init_from")
    if path is None:
        raise InputError(f"{run.workdir} begins with a Keras file: give --init_from")
    first = run.splits.first
    images = first.read(np.arange(min(_TRIED, len(first))))
    return import_keras(path, run.whole, run.scale(jnp.asarray(images)))


def _train(run: Run, done: int | None, before: Sequence[Any]) -> Any:
    """Trains from epoch `done` on; writes the log and a checkpoint for each epoch."""
    conf = run.training
    split = datasets.choose_split(run.splits, conf.train_split)
    check_classes(split, conf.train_split)
    per_epoch = loop.steps_per_epoch(split, conf.train_batch_size)
    devices = cluster.training_mesh(run.mesh, conf.train_batch_size)
    step, state = _start(run, per_epoch, done)
    first = processes.is_first()
    if first:
        config.write(conf, run.workdir)
    lines = [*before]
    evaluate = _evaluator(run)
    with _wandb(run) as mirror, _Progress(per_epoch, conf, done or 0) as progress:
        for result in loop.fit(
            step,
            state,
            split,
            epochs=conf.epochs,
            batch_size=conf.train_batch_size,
            seed=conf.seed,
            mesh=devices,
            on_step=progress.step,
        ):
            images = per_epoch * conf.train_batch_size
            line = {
                "epoch": result.epoch,
                "loss": round(result.loss, 6),
                "train_accuracy": round(result.accuracy, 6),
                **evaluate(result.state.variables),
                "seconds": round(result.seconds, 2),
                "images_per_second": round(images / result.seconds, 1),
            }
            state = result.state
            if first:
                lines.append(line)
                checkpoint.save(
                    run.checkpoints, result.epoch, state.variables, state.opt_state,
                    _facts(run, lines),
                )  # fmt: skip
                training_log.write(run.workdir, lines)
            progress.epoch(line)
            if mirror is not None:
                mirror.log(line, step=result.epoch)
    return jax.device_get(state.variables)


def _start(run: Run, per_epoch: int, done: int | None) -> tuple[Any, TrainState]:
    """The training step, and the state at the beginning or after epoch `done`."""
    conf = run.training
    warmup = round(min(conf.warmup_epochs, conf.epochs) * per_epoch)
    optimizer = loop.adam(conf.learning_rate, conf.epochs * per_epoch, warmup)
    step = training.make_train_step(
        run.model.apply,
        optimizer,
        run.scale,
        seed=conf.seed,
        l2=run.l2,
        augment=crop_and_flip if run.recipe.crop_and_flip else None,
    )
    if done is None:
        return step, training.init_state(_initial(run), optimizer)
    state = training.init_state(run.init(), optimizer)
    variables, opt_state = checkpoint.restore(
        run.checkpoints, done, state.variables, state.opt_state
    )
    return step, TrainState(jnp.int32(done * per_epoch), variables, opt_state)


def _evaluator(run: Run) -> Callable[[Any], dict[str, float]]:
    """Variables -> accuracy and balanced accuracy on the test split."""
    split = run.splits["test"]
    own = split.select(processes.own(len(split)))
    program = compiled(run.apply, run.mesh)
    size = min(run.batch_size(split), len(own))

    def evaluate(variables: Any) -> dict[str, float]:
        logits = predict(
            program, jax.device_get(variables), own, batch_size=size, mesh=run.mesh
        )
        predictions = np.concatenate(processes.gather(logits.argmax(-1)))
        counts = metrics.confusion(
            predictions[None], split.labels, len(split.class_names)
        )
        return {
            "test_accuracy": round(float(metrics.accuracy(counts)[0]), 6),
            "test_balanced_accuracy": round(
                float(metrics.balanced_accuracy(counts)[0]), 6
            ),
        }

    return evaluate


class _Progress:
    """One bar for all epochs, with means over the one under way; a line for each."""

    def __init__(self, per_epoch: int, conf: Config, done: int):
        self.conf = conf
        size = per_epoch * conf.train_batch_size
        self.bar = cluster.progress(
            total=conf.epochs * size, initial=done * size, unit="img", desc="training"
        )
        self.sums = np.zeros(2)
        self.steps = 0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def step(self, m: StepMetrics) -> None:
        self.sums += float(m.loss), float(m.accuracy)
        self.bar.update(self.conf.train_batch_size)
        self.steps += 1
        loss, accuracy = self.sums / self.steps
        postfix = {"loss": f"{loss:.4f}", "accuracy": f"{accuracy:.4f}"}
        self.bar.set_postfix(postfix, refresh=False)  # at the bar's own pace

    def epoch(self, line: dict[str, Any]) -> None:
        self.sums[:] = self.steps = 0
        cluster.say(
            f"epoch {line['epoch']:>3}/{self.conf.epochs}  loss {line['loss']:.4f}  "
            f"train accuracy {line['train_accuracy']:.4f}  test accuracy "
            f"{line['test_accuracy']:.4f} (balanced "
            f"{line['test_balanced_accuracy']:.4f})  "
            f"{line['images_per_second']:.0f} images/s"
        )


def _wandb(run: Run) -> AbstractContextManager[Any]:
    if not run.settings.wandb or not processes.is_first():
        return nullcontext()
    try:
        import wandb
    except ImportError as error:
        raise InputError("--wandb needs: pip install 'jaxprune[wandb]'") from error
    name = str(run.workdir)
    values = dataclasses.asdict(run.config)
    return wandb.init(project="jaxprune", name=name, config=values, dir=name)
