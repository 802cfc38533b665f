"""Which channels of a CNN can go, what each costs, and the smaller network."""

from importlib.metadata import version as _version

from jaxprune import report
from jaxprune.channels.calibration import linear_fill, linear_fills, mean_fills
from jaxprune.channels.fills import FILLS, Fill
from jaxprune.channels.flow import ChannelFlow, channel_flow
from jaxprune.channels.groups import Groups, find_groups
from jaxprune.channels.taps import TAPS, capture, last_conv, list_layers, run_from
from jaxprune.compaction.compact import compact, compact_groups, compact_layers
from jaxprune.compaction.cost import Cost, cost
from jaxprune.compaction.network import Compact, PrunedLayer, load_compact
from jaxprune.compaction.proof import Proof
from jaxprune.data.splits import Split, image_split
from jaxprune.errors import InputError
from jaxprune.mesh import make_mesh
from jaxprune.networks.keras_import import import_keras
from jaxprune.networks.predict import predict
from jaxprune.networks.recalibrate import recalibrate
from jaxprune.ranking import criteria
from jaxprune.ranking.criteria import Criterion
from jaxprune.ranking.order import prefix_masks, pruning_order
from jaxprune.shrinking.analysis import Analysis
from jaxprune.shrinking.budget import Budget
from jaxprune.shrinking.shrink import analyse, shrink
from jaxprune.sweep.evaluation import evaluate_masks
from jaxprune.sweep.layer import sweep_layer, sweep_orders
from jaxprune.sweep.result import SweepResult
from jaxprune.sweep.score import score
from jaxprune.sweep.trunk import TappedLayer, tap_layer
from jaxprune.sweep.unfinished import Unfinished

__version__ = _version("jaxprune")

__all__ = [
    "FILLS",
    "TAPS",
    "Analysis",
    "Budget",
    "ChannelFlow",
    "Compact",
    "Cost",
    "Criterion",
    "Fill",
    "Groups",
    "InputError",
    "Proof",
    "PrunedLayer",
    "Split",
    "SweepResult",
    "TappedLayer",
    "Unfinished",
    "analyse",
    "capture",
    "channel_flow",
    "compact",
    "compact_groups",
    "compact_layers",
    "cost",
    "criteria",
    "evaluate_masks",
    "find_groups",
    "image_split",
    "import_keras",
    "last_conv",
    "linear_fill",
    "linear_fills",
    "list_layers",
    "load_compact",
    "make_mesh",
    "mean_fills",
    "predict",
    "prefix_masks",
    "pruning_order",
    "recalibrate",
    "report",
    "run_from",
    "score",
    "shrink",
    "sweep_layer",
    "sweep_orders",
    "tap_layer",
]
