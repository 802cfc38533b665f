"""Which channels of a CNN can go, what each costs, and the smaller network."""

from jaxprune.channels.taps import TAPS, capture, last_conv, replace
from jaxprune.compaction.compact import compact, compact_layers
from jaxprune.compaction.network import Compact, load_compact
from jaxprune.data.splits import Split, image_split
from jaxprune.errors import InputError
from jaxprune.mesh import make_mesh
from jaxprune.ranking.order import CRITERIA, abs_mean, mean, prefix_masks, rank_channels
from jaxprune.sweep.evaluation import evaluate_masks
from jaxprune.sweep.layer import FILLS, sweep_layer
from jaxprune.sweep.result import SweepResult
from jaxprune.sweep.trunk import TappedLayer, tap_layer

__all__ = [
    "CRITERIA",
    "FILLS",
    "TAPS",
    "Compact",
    "InputError",
    "Split",
    "SweepResult",
    "TappedLayer",
    "abs_mean",
    "capture",
    "compact",
    "compact_layers",
    "evaluate_masks",
    "image_split",
    "last_conv",
    "load_compact",
    "make_mesh",
    "mean",
    "prefix_masks",
    "rank_channels",
    "replace",
    "sweep_layer",
    "tap_layer",
]
