"""Which channels of a CNN can go, what each costs, and the smaller network."""

from jaxprune.compact import compact, compact_layers
from jaxprune.compact_network import Compact, load_compact
from jaxprune.data import Split, image_split
from jaxprune.errors import InputError
from jaxprune.evaluate import evaluate_masks
from jaxprune.mesh import make_mesh
from jaxprune.ranking import CRITERIA, abs_mean, mean, prefix_masks, rank_channels
from jaxprune.results import SweepResult
from jaxprune.sweep import FILLS, sweep_layer
from jaxprune.tapped import TappedLayer, tap_layer
from jaxprune.taps import TAPS, capture, last_conv, replace

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
