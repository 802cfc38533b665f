"""Each script, as a command, has the flags that it uses and no others."""

import dataclasses
import subprocess
import sys

import pytest

from jaxprune.__main__ import COMMANDS
from jaxprune.cli import process
from jaxprune.cli.commands import sweep
from jaxprune.recipes.config import Config
from jaxprune.recipes.recipe import RECIPES

NETWORK = {
    "workdir", "data", "image_size", "data_dir", "cache_dir", "devices",
    "compilation_cache", "wandb", "precision",
    *(field.name for field in dataclasses.fields(Config)),
}  # fmt: skip
PROCESSES = {"coordinator", "num_processes", "process_id"}
CHOICES = {
    "layer",
    "criterion",
    "oracle_images",
    "greedy_images",
    "maps",
    "maps_dir",
    "tap",
    "fill",
    "rank_split",
    "select_split",
    "eval_split",
    "ks",
    "calibration_split",
    "ridge",
    "allow_overlap",
}
FINETUNING = {
    "recalibrate", "finetune_epochs", "finetune_learning_rate", "finetune_images",
    "finetune_split", "finetune_batch_size", "distill", "distill_temperature",
    "distill_weight",
}  # fmt: skip
FLAGS = {
    "train": {*NETWORK, *PROCESSES, "batch_size"},
    "sweep": {
        *NETWORK, *PROCESSES, *CHOICES, "batch_size", "mask_chunk", "max_drop", "seeds",
        "random_orders", "report", "task", "output", "ignore",
    },
    "compact": {
        *NETWORK, *CHOICES, *FINETUNING, "batch_size", "k", "max_drop", "naive",
        "unproved", "export", "repeats", "latency_batches", "task", "output", "ignore",
    },
    "shrink": {
        *NETWORK, *PROCESSES, *FINETUNING, "batch_size", "eval_split",
        "calibration_split",
        "allow_overlap", "speedup", "size", "latency", "batch", "max_drop", "ladder",
        "keep_whole", "multiple_of", "curves", "export", "repeats", "latency_batches",
        "report", "task", "output", "ignore",
    },
    "plot": {"workdir", "order", "normalize", "confusion_k", "format"},
    "report": {"workdir"},
    "bench": {
        *NETWORK, *(FINETUNING - {"recalibrate"}), "images", "some_images", "loop_ks",
        "runs", "scaling", "measure", "channels", "what", "networks", "eval_split",
        "calibration_split", "allow_overlap", "repeats", "latency_batches", "speedup",
        "batch", "keep_whole", "multiple_of", "curves", "budgets",
    },
}  # fmt: skip


@pytest.mark.parametrize("script", FLAGS)
def test_helpfull_lists_every_flag_of_the_script(script, starter, tmp_path):
    ended = starter.run(script, "--helpfull", folder=tmp_path)
    assert ended.code == 0, ended.text
    names, module = set(), ""
    for line in ended.text.splitlines():
        if line and not line.startswith(" "):
            module = line
        elif line.startswith("  --") and module.startswith(
            ("jaxprune.", "experiments.")
        ):
            names.add(line.split(":")[0].removeprefix("  --").removeprefix("[no]"))
    assert names == FLAGS[script]


def test_settings_are_what_the_command_line_gives():
    given = ("--widths=4,6", "--seeds=0,1", "--noreport", "--maps=disk", "--ridge=0.5")
    settings = process.parse(sweep.Settings, ["sweep", *given])
    assert settings == sweep.Settings(
        given=frozenset({"widths", "seeds", "report", "maps", "ridge"}),
        overrides={"widths": ["4", "6"]}, seeds=("0", "1"), report=False, ridge=0.5,
        maps="disk",
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen(command, starter, tmp_path):
    ended = starter.run(command, "--help", folder=tmp_path)
    assert ended.code == 0, ended.text
    lines = ended.text.splitlines()
    assert len(lines) <= 45 and lines[-1].startswith("Try --helpfull")
    assert f"    jaxprune {command} --" in ended.text
    assert sum(line.startswith("  --") for line in lines) <= 10


def test_a_flag_of_another_script_is_refused(starter, tmp_path):
    ended = starter.run("compact", "--k=1", "--mask_chunk=2", folder=tmp_path)
    assert ended.code == 2
    assert "mask_chunk" in ended.text and "Traceback" not in ended.text


@pytest.mark.parametrize(
    ("script", "advice"),
    [
        (
            "jaxprune.cli.commands.compact",
            "--batch_size or --train_batch_size in training",
        ),
        (
            "jaxprune.cli.commands.sweep",
            "--batch_size or --mask_chunk or --train_batch_size in training",
        ),
        ("experiments.bench.__main__", "--train_batch_size in training"),
    ],
)
def test_out_of_memory_names_flags_that_the_script_has(script, advice):
    code = (
        f"from {script} import Settings; from jaxprune.cli import process\n"
        "def main(settings): raise MemoryError\n"
        "process.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: out of memory: lower {advice}"


@pytest.mark.parametrize("model", RECIPES)
def test_the_recipe_s_configuration_is_that_of_its_network(model):
    recipe, classes = RECIPES[model], 2 if model.endswith("pair") else 10
    network = recipe.build(recipe.config, classes)
    assert recipe.config.model == model
    assert network == type(network)()
