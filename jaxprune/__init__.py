"""Which channels of a CNN can go, what each costs, and the smaller network."""

from importlib.metadata import version as _version

from jaxprune import report
from jaxprune.adapters.linen import capture, from_linen
from jaxprune.adapters.queries import find_groups, last_conv, list_layers
from jaxprune.compaction.compact import compact, compact_groups, compact_layers
from jaxprune.compaction.network import Compact, PrunedLayer, load_compact
from jaxprune.compaction.proof import Proof
from jaxprune.cost.cost import Cost, cost
from jaxprune.data.splits import Split, image_split
from jaxprune.errors import InputError
from jaxprune.fills.calibration import linear_fill, linear_fills, mean_fills
from jaxprune.fills.fill import FILLS, Fill
from jaxprune.graph.groups import Groups, PruningGroup
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network
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
from jaxprune.sweep.taps import TAPS, run_from
from jaxprune.sweep.trunk import TappedLayer, tap_layer
from jaxprune.sweep.unfinished import Unfinished

__version__ = _version("jaxprune")

__all__ = [
    "FILLS",
    "TAPS",
    "Analysis",
    "Budget",
    "Compact",
    "Cost",
    "Criterion",
    "Fill",
    "Groups",
    "InputError",
    "Layer",
    "Network",
    "Proof",
    "PrunedLayer",
    "PruningGroup",
    "Split",
    "SweepResult",
    "TappedLayer",
    "Unfinished",
    "analyse",
    "capture",
    "compact",
    "compact_groups",
    "compact_layers",
    "cost",
    "criteria",
    "evaluate_masks",
    "find_groups",
    "from_linen",
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
