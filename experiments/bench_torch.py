"""What `experiments.bench` measures of PyTorch, with the same weights and images.

On a GPU in its best setting: channels last, torch.compile, TF32 as JAX uses it. On a
CPU channels last, which is faster than the default there too; compiling is not.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.bench_ours import (
    STEPS,
    Bench,
    combine_trunk_and_heads,
    timed,
)
from jaxprune.channels import flow as dependence
from jaxprune.channels.taps import at_path
from jaxprune.data.splits import Split, batches

_CUDA = torch.cuda.is_available()
_DEVICE = "cuda" if _CUDA else "cpu"
_BATCH = 2048 if _CUDA else 128


class _Network(nn.Module):
    """CifarVGG, cut behind the ReLU of its last convolution."""

    def __init__(self, bench: Bench):
        super().__init__()
        params, stats = (bench.variables[c] for c in ("params", "batch_stats"))
        run = bench.run
        calls = dependence.list_calls(run.apply, bench.variables, run.example)
        parts: list[list[nn.Module]] = [[], []]
        side = run.example.shape[1]
        where = 0
        dense = 0
        for i, call in enumerate(calls):
            p = {k: torch.tensor(np.array(v)) for k, v in
                 at_path(params, call.name).items()}  # fmt: skip
            here = parts[where]
            if call.name.startswith("conv"):
                height = call.output.shape[1]
                if height < side:
                    here.append(nn.MaxPool2d(2))
                    side = height
                out, into = p["kernel"].shape[3], p["kernel"].shape[2]
                conv = nn.Conv2d(into, out, 3, padding=1)
                conv.weight.data = p["kernel"].permute(3, 2, 0, 1).contiguous()
                conv.bias.data = p["bias"]
                here += [conv, nn.ReLU()]
                where = 1 if call.name == bench.layer else where
            elif call.name.startswith("batch"):
                s = at_path(stats, call.name)
                norm = nn.BatchNorm2d(len(p["scale"]), eps=1e-3, momentum=0.01)
                norm.weight.data, norm.bias.data = p["scale"], p["bias"]
                norm.running_mean = torch.tensor(np.array(s["mean"]))
                norm.running_var = torch.tensor(np.array(s["var"]))
                here.append(norm)
            else:
                if dense == 0:
                    here += [nn.MaxPool2d(2), nn.Flatten()]
                here.append(nn.Dropout(run.model.dense_dropout[min(dense, 2)]))
                linear = nn.Linear(*p["kernel"].shape)
                linear.weight.data = p["kernel"].T.contiguous()
                linear.bias.data = p["bias"]
                here.append(linear)
                if i < len(calls) - 1:
                    here.append(nn.ReLU())
                dense += 1
        self.trunk, self.head = nn.Sequential(*parts[0]), nn.Sequential(*parts[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x))


def _network(bench: Bench) -> Any:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return _Network(bench).eval().to(_DEVICE, memory_format=torch.channels_last)


def _compiled(module: Any) -> Any:
    return torch.compile(module, mode="max-autotune") if _CUDA else module


def _batches(bench: Bench, split: Split, size: int = _BATCH) -> list[torch.Tensor]:
    """Scaled images on the device, as PyTorch likes them."""
    config = bench.run.config
    mean = np.array(config.pixel_mean, np.float32)
    std = np.array(config.pixel_std, np.float32)
    result = []
    for batch in batches(split, size):
        x = (batch.images.astype(np.float32) - mean) / std
        x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(_DEVICE)
        result.append(x.to(memory_format=torch.channels_last))
    return result


def _finish() -> None:
    if _CUDA:
        torch.cuda.synchronize()


@torch.inference_mode()
def evaluation(bench: Bench) -> dict[str, Any]:
    """The network's predictions of all images, once; images lie scaled in memory."""
    network = _compiled(_network(bench))
    batches = _batches(bench, bench.split)
    network(batches[0])

    def run() -> np.ndarray:
        return np.concatenate([network(x).argmax(-1).cpu().numpy() for x in batches])

    right = run()[: len(bench.split)] == bench.split.labels
    return {"seconds": timed(run, bench.runs), "accuracy": float(right.mean())}


def training(bench: Bench) -> dict[str, Any]:
    """STEPS training steps of one batch each, with the same loss, no augmentation."""
    size = bench.run.config.train_batch_size
    base = _network(bench).train()
    network = _compiled(base)
    l2 = bench.run.config.recipe.l2
    convs = [m for m in base.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    calls = dependence.list_calls(bench.run.apply, bench.variables, bench.run.example)
    names = [c.name for c in calls if c.name.startswith(("conv", "dense"))]
    weights = {n: m.weight for n, m in zip(names, convs, strict=True)}
    optimizer = torch.optim.Adam(base.parameters(), fused=_CUDA or None)
    index = np.arange(size) % len(bench.split)
    x = _batches(bench, bench.split.select(index), size)[0]
    y = torch.tensor(bench.split.labels[index]).to(_DEVICE)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x), y)
            for name, coefficient in l2.items():
                loss = loss + coefficient * (weights[name] ** 2).sum()
            loss.backward()
            optimizer.step()
        _finish()

    steps()
    return {"seconds": timed(steps, bench.runs)}


@torch.inference_mode()
def one_pass(bench: Bench) -> dict[str, Any]:
    """For a few K: weights zeroed, and one pass over some of the images."""
    base = _network(bench)
    network = _compiled(base)
    batches = _batches(bench, bench.some)
    conv = [m for m in base.trunk if isinstance(m, nn.Conv2d)][-1]
    network(batches[0])

    def loop() -> None:
        for k in bench.loop_ks:
            conv.weight[:k] = 0
            conv.bias[:k] = 0
            for x in batches:
                network(x).argmax(-1).cpu()

    measured = len(bench.loop_ks) / bench.channels * len(bench.some) / len(bench.split)
    return {"seconds": timed(loop, bench.runs), "measured": measured}


@torch.inference_mode()
def cached_trunk(bench: Bench) -> dict[str, Any]:
    """The head for a few K on kept feature maps of some images, and the trunk once."""
    base = _network(bench)
    trunk, head = _compiled(base.trunk), _compiled(base.head)
    batches = _batches(bench, bench.some)

    def run_trunk() -> list[torch.Tensor]:
        maps = [trunk(x).clone() for x in batches]
        _finish()
        return maps

    maps = run_trunk()

    def run_heads() -> None:
        for k in bench.loop_ks:
            mask = (torch.arange(bench.channels) >= k).to(_DEVICE)[:, None, None]
            for feature_map in maps:
                head(feature_map * mask).argmax(-1).cpu()

    run_heads()
    return combine_trunk_and_heads(
        bench, timed(run_trunk, bench.runs), timed(run_heads, bench.runs)
    )


MEASURES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "evaluation": evaluation,
    "training": training,
    "one_pass": one_pass,
    "cached_trunk": cached_trunk,
}
