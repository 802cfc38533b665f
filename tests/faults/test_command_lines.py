"""Command lines that make no sense: one line, exit code 2, within seconds."""

import shutil
import time

import numpy as np
import pytest

from runs import JOBS, Runs
from tally import trials

pytestmark = pytest.mark.slow
LINES, SECONDS = 150, 20.0

# In a run directory with a trained network and a sweep, each would do something.
COMMANDS = {
    "train": ("--workdir=run",),
    "sweep": ("--workdir=run",),
    "compact": ("--workdir=run", "--k=3", "--repeats=1"),
    "shrink": ("--workdir=run", "--speedup=1.5", "--ladder=", "--repeats=1"),
    "plot": ("--workdir=run",),
    "report": ("--workdir=run",),
    "bench": ("--model=digits_pair", "--workdir=bench"),
}
# Of which other scripts know nothing, which is another reason to refuse them.
WHOLE = (
    "seed depth epochs train_batch_size source_images train_pairs test_pairs devices "
    "batch_size mask_chunk random_orders oracle_images greedy_images k finetune_epochs "
    "finetune_images multiple_of batch confusion_k num_processes process_id repeats "
    "image_size"
).split()
REAL = (
    "learning_rate warmup_epochs ridge max_drop speedup size latency "
    "distill_temperature distill_weight finetune_learning_rate"
).split()
NAMES = (
    "model dataset dtype criterion tap fill maps export order normalize layer curves"
).split()
SPLITS = "train_split rank_split select_split eval_split calibration_split".split()
NO_NUMBER = (
    "x",
    "",
    "-1",
    "nan",
    "None",
    "1,5",
    "--",
    "\udcff",
    "one",
    "1 2",
    "\u0663x",
)
NONSENSE = {
    **dict.fromkeys(WHOLE, (*NO_NUMBER, "1.5", "1e3", "inf", "0x1g", "-99999999999")),
    **dict.fromkeys(REAL, (*NO_NUMBER, "inf", "-inf", "1e999", "-1e-9")),
    **dict.fromkeys(NAMES, ("x", "", "../../etc", "zeros", "a b", "\u65e5\u672c",
                            "\udcff", "-", "a/../b", "mean,mean", "x" * 3000)),
    **dict.fromkeys(SPLITS, ("test[", "tset", "test[5:2]", "test[-5]", "x[0:1]", "",
                             "test[99999999:]", "test[::2]", "train[:0]", "test[1:2:3]",
                             "\udcff", "test[1]", "test[a:b]", "test[:101%]", "test+",
                             "train+x", "test[:0%]", "test[.5:]")),
    "ks": ("x", "", "1,1", "5,3", "0:99999999999", "-3:2", "9", "::0", "1.5", "0:5:-1",
           "1:2:3:4", ",", ":-99999999999999999999", "99999999999999999999", "\u0663x"),
    "random_orders": ("99999999999", "1000000"),
    "latency_batches": ("0", "x", "-1", "", "1,,2", "1.5"),
    "widths": ("0,1,2", "1", "x", "-1,-2,-3", "1,2,3,4", "1.5,2,3", ","),
    "dense": ("0", "1,2,3", "x", "-1"),
    "pixel_mean": ("nan", "x", "1,2,3,4,5", "inf", ","),
    "pixel_std": ("0", "-1", "nan", "x", "1,2,3,4,5", ","),
    "seeds": ("1", "1,1", "x", "-1,2", "", "1,,2", "0.5,1"),
    "ladder": ("0.5", "x", "nan", "-1", "inf", "1e999"),
    "keep_whole": ("nothing", "conv1,nothing", "../x"),
    "workdir": ("", "file", "file/run", "/proc/nothing/run", "/dev/null/run", "\udcff",
                "loop", "x" * 300, "link_to_nothing/.."),
    "data_dir": ("",),
    "cache_dir": ("",),
    "init_from": ("", "nothing.h5", "run", "file", "loop"),
    "maps_dir": ("", "nothing", "file", "file/x"),
    "coordinator": ("here", ":1", "here:", "here:x", "here:0", "here:99999", "",
                    "here:1"),
    "flagfile": ("nothing", "run", "file", "loop"),
    "colour": ("red", "", "\udcff"),
    "what": ("", "nothing"),
}  # fmt: skip
# Flags without a value, words, and flags that say too much together.
OTHERS = (
    ("sweep",), ("-x",), ("--k",), ("--nomodel",), ("--",  "x"), ("--=3",), ("---",),
    ("--naive=maybe",), ("--distill=2",), ("--recalibrate", "no"), ("--nok=3",),
    ("--k=1", "--ks=1,2"), ("--k=1", "--max_drop=0.1"), ("--naive", "--k=1"),
    ("--distill_weight=0.5",), ("--finetune_learning_rate=0.1",), ("--distill",),
    ("--distill_temperature=2",), ("--speedup=2", "--size=0.5"), ("--speedup=1e9",),
    ("--size=1e-9",), ("--size=2",), ("--speedup=0.5",), ("--latency=0",), ("--k=8",),
    ("--num_processes=2",), ("--process_id=1",), ("--confusion_k=99",), ("\udcff",),
    ("--coordinator=here:1", "--num_processes=2", "--process_id=2"), ("--k=99",),
    ("--criterion=all", "--fill=all"), ("--calibration_split=test", "--fill=linear"),
    ("--seeds=1,2", "--seed=3"), ("--batch_size=9999999",), ("--devices=2",),
    ("--finetune_images=9", "--finetune_epochs=1"), ("--layer=dense1",),
    ("--criterion=oracle", "--oracle_images=99999"), ("--model=cifar_vgg",),
    ("--greedy_images=99999", "--criterion=greedy_oracle"), ("--seed=7",),
    ("--depth=20",), ("--ridge=-1",),
    ("--model", "digits_pair", "more"), ("--wor=run",), ("--fill=linear", "--ridge=0"),
)  # fmt: skip


def draw(rng):
    """A script, and one or two things too many for it."""
    script = list(COMMANDS)[rng.integers(len(COMMANDS))]
    extra = []
    for _ in range(1 + (rng.random() < 0.2)):
        if rng.random() < 0.3:
            others = OTHERS[rng.integers(len(OTHERS))]
            extra += others if script in ("compact", "sweep", "shrink") else others[:1]
        else:
            flag = list(NONSENSE)[rng.integers(len(NONSENSE))]
            values = NONSENSE[flag]
            extra.append(f"--{flag}={values[rng.integers(len(values))]}")
    return script, extra


@pytest.fixture(scope="module")
def folder(tmp_path_factory, starter):
    runs = Runs(tmp_path_factory.mktemp("lines"), starter)
    folder = runs.after([JOBS["train"], JOBS["sweep"]])
    (folder / "file").write_text("x\n")
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.mark.parametrize("part", range(2))
def test_command_lines(part, folder, starter, tally, tmp_path):
    """150 in all."""
    tally.kind = "command lines"
    count = trials(LINES)
    for seed in range(part * count // 2, (part + 1) * count // 2):
        script, extra = draw(np.random.default_rng(seed))
        here = shutil.copytree(folder, tmp_path / str(seed), symlinks=True)
        started = time.monotonic()
        child = starter.start(script, *COMMANDS[script], *extra, folder=here)
        done = child.wait(2 * SECONDS)
        what = f"{script} {' '.join(map(ascii, extra))}: {done.code} {done.text[-700:]}"
        late = time.monotonic() - started > SECONDS
        if done.is_traceback or done.code is None or late:
            tally.add("traceback", f"{'late, ' * late}{what}")
        else:
            tally.add("refused" if done.is_refused else "wrong", what)
        shutil.rmtree(here)
    tally.close()
