"""The page as one file: what it holds, and the HTML around it.

It needs no network and cannot use one: its Content-Security-Policy allows its own
scripts, named by their SHA-256, and pictures that are part of it.
"""

import base64
import hashlib
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from jaxprune._base.errors import InputError
from jaxprune._base.files import write_text
from jaxprune.report.page import budgets, charts, facts, networks, pixels, sweeps
from jaxprune.report.page.budgets import Budgets
from jaxprune.report.page.pictures import Pictures
from jaxprune.report.page.sweeps import Sweep, TaskSweep
from jaxprune.report.task_curves import examples, in_words
from jaxprune.results.base import BaseResult, drop_in_words
from jaxprune.results.load import AnyResult
from jaxprune.results.thumbnails import SHOWN

# What sweeps hold beside their curves, in bytes of the page; of further ones the curves
# alone are shown.
_DETAILS = 4_000_000
# Where there are no more classes than this, confusion is shown as a matrix.
_MATRIX = 20

# Column, column of its change, and title.
_OF_CLASSES = (
    ("accuracy", "change", "accuracy"),
    ("balanced_accuracy", "balanced_change", "balanced accuracy"),
)

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("jaxprune.report.page"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
      html: the whole file.
    """

    html: str

    def save(self, path: Path | str) -> None:
        """Writes it, whole or not at all."""
        write_text(Path(path), self.html)

    def _repr_html_(self) -> str:
        """As a notebook shows it: in a frame of its own."""
        style = "width: 100%; height: 56rem; border: 0"
        title = "report"
        content = html.escape(self.html)
        return f'<iframe title="{title}" style="{style}" srcdoc="{content}"></iframe>'


def write(source: Path | str | AnyResult, path: Path | str) -> None:
    """Writes the report of saved results; see `make`."""
    make(source, Path(path).parent).save(path)


def make(source: Path | str | AnyResult, folder: Path | str | None = None) -> Page:
    """The report of a run directory, of one sweep in its folder, or of a result.

    Of a run directory it shows all sweeps, the networks that were made smaller, and the
    budgets of `jaxprune shrink`.

    Args:
      source: folder of the saved results, or a result.
      folder: that the page is for, which links to networks are relative to; by default
        the run directory.

    Raises:
      InputError: there is nothing to show, or a file is damaged.
    """
    pictures, ladder = Pictures(), None
    tables: dict[str, Any] = {"compact": [], "shrunk": []}
    if isinstance(source, BaseResult):
        found = sweeps.find(source)
    else:
        workdir = Path(source)
        where = workdir if folder is None else Path(folder)
        tables = {
            "compact": networks.saved_networks(workdir, where, "compact"),
            "shrunk": networks.saved_networks(workdir, where, "shrink"),
        }
        ladder = budgets.read(workdir, pictures)
        found = sweeps.find(workdir, needed=ladder is None)
    data = _data(found, ladder, pictures)
    return Page(_render(found, ladder, data, pictures, tables))


class _Measure(NamedTuple):
    """A figure that the page shows: its column, that of its change, its title."""

    column: str
    change: str
    title: str


def _measures(sweep: Sweep | TaskSweep) -> list[_Measure]:
    """The scores, the one that decides first."""
    if isinstance(sweep, Sweep):
        return [_Measure(*names) for names in _OF_CLASSES]
    return [
        _Measure(name, f"{name}_change", in_words(name))
        for name in sweep.result.score_names
    ]


def _loss(sweep: Sweep | TaskSweep) -> _Measure:
    if isinstance(sweep, Sweep):
        return _Measure("cross_entropy", "", "cross-entropy, nats")
    return _Measure("loss", "", "loss")


def _data(
    found: Sequence[Sweep | TaskSweep], ladder: Budgets | None, pictures: Pictures
) -> dict[str, Any]:
    """The data that the page's script reads."""
    listed = _listed(found, pictures)
    return {
        "sweeps": listed,
        "budgets": ladder.data if ladder is not None else None,
        "measure": _measures(found[0])[0].column if found else "",
        "embed": charts.OPTIONS,
        "matrix": _MATRIX,
        "pairs": SHOWN,
        "maps": [{"columns": maps.one.columns} for maps in pictures.maps],
        "pools": [{"columns": pool.columns} for pool in pictures.pools],
        "charts": _charts(found) if found else {},
    }


def _listed(
    found: Sequence[Sweep | TaskSweep], pictures: Pictures
) -> list[dict[str, Any]]:
    """The sweeps: the curves of all, and the details of as many as the page takes."""
    listed: list[dict[str, Any]] = []
    size = 0
    for i, sweep in enumerate(found):
        dot = charts.dot(i, len(found))
        shown: dict[str, Any] = {**sweep.curve(), "dot": dot, "detail": None}
        detail = sweep.detail()
        size += len(json.dumps(detail))
        if size <= _DETAILS or not listed:
            maps = pictures.feature_maps(sweep)
            shown["texts"] |= _scale(pictures.maps[maps])
            shown["detail"] = {**detail, **_thumbnails(sweep, detail, pictures)}
            shown["detail"]["maps"] = maps
        listed.append(shown)
    return listed


def _thumbnails(
    sweep: Sweep | TaskSweep, detail: dict[str, Any], pictures: Pictures
) -> dict[str, Any]:
    """The places of a sweep's thumbnails, and the pool that they are in."""
    result = sweep.result
    if result.thumbnail_images is None or result.thumbnails is None:
        return {"thumbnails": [-1] * len(detail["images"]), "pool": -1}
    places = pictures.places(result.thumbnail_images, result.thumbnails)
    return {
        "thumbnails": [places.get(i, -1) for i in detail["images"]],
        "pool": pictures.pool(result.thumbnails),
    }


def _charts(found: Sequence[Sweep | TaskSweep]) -> dict[str, Any]:
    """Specifications of the charts, by name."""
    names = [sweep.name for sweep in found]
    channels = max(len(sweep.result.order) for sweep in found)
    titles = {
        each.column: each.title
        for each in [*_measures(found[0]), _loss(found[0])]
        if any(each.column in sweep.columns for sweep in found)
    }
    of_classes = isinstance(found[0], Sweep)
    shares = {"shares": charts.shares(sweeps.SHARES, channels)} if of_classes else {}
    return {
        **{
            name: charts.curves(name, title, names, channels, share=of_classes)
            for name, title in titles.items()
        },
        **shares,
    }


def _scale(maps: pixels.Maps) -> dict[str, str]:
    """The ends of the one scale, and what a pixel is."""
    means = (
        f", drawn as means over {maps.block} x {maps.block}" if maps.block > 1 else ""
    )
    return {"low": f"{maps.low:.3g}", "high": f"{maps.high:.3g}", "means": means}


def _render(
    found: Sequence[Sweep | TaskSweep],
    ladder: Budgets | None,
    data: dict[str, Any],
    pictures: Pictures,
    tables: dict[str, Any],
) -> str:
    scripts = {
        "library": _script(charts.library() if found else ""),
        "script": _script(_source("page.js")),
    }
    if found:
        title = str(found[0].result.about.get("model", "network"))
        measures = _measures(found[0])
        of_sweeps = {"measures": measures, "loss": _loss(found[0])}
        score = measures[0].title
    else:
        assert ladder is not None  # or there is nothing to show
        title, of_sweeps, score = ladder.model, {}, ladder.measure
    return _TEMPLATES.get_template("page.html").render(
        policy=_policy([*scripts.values()]),
        style=Markup(_source("page.css")),
        data=data,
        sweeps=[
            {
                "name": sweep.name,
                "facts": facts.rows(sweep.result),
                "remarks": sweep.result.remarks,
                "allowed": drop_in_words(sweep.result.measure, sweep.result.max_drop),
                "examples": _examples(sweep),
                "colour": charts.colour(i),
                "safe": sweep.marked["largest_safe_k"],
                "jumps": _jumps(sweep),
                "every": len(sweep.rows) == len(sweep.result.ks),
                "result": sweep.result,
            }
            for i, sweep in enumerate(found)
        ],
        left_out=[shown["name"] for shown in data["sweeps"] if shown["detail"] is None],
        maps=pictures.maps,
        pools=pictures.pools,
        shown=SHOWN,
        title=title,
        classes=bool(found) and isinstance(found[0], Sweep),
        ladder=ladder,
        score=score,
        **of_sweeps,
        **tables,
        **scripts,
    )


def _examples(sweep: Sweep | TaskSweep) -> str:
    """Images beside targets and outputs, as a data URL; "" where there are none."""
    if isinstance(sweep, Sweep) or sweep.result.shown_outputs is None:
        return ""
    file = io.BytesIO()
    examples(sweep.result).savefig(file, dpi=80, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _jumps(sweep: Sweep | TaskSweep) -> list[tuple[str, int]]:
    """The K that buttons lead to, and what is on them."""
    first, marked = sweep.result.ks[0], sweep.marked
    return [
        (f"K = {first}", first),
        (f"largest safe K: {marked['largest_safe_k']}", marked["largest_safe_k"]),
        (f"as measured: {marked['largest_k_within']}", marked["largest_k_within"]),
    ]


def _source(name: str) -> str:
    loader = _TEMPLATES.loader
    assert loader is not None
    return loader.get_source(_TEMPLATES, name)[0]


def _script(text: str) -> Markup:
    """Inline JavaScript as it is, which must not end its element.

    Raises:
      InputError: it would.
    """
    if "</script" in text.lower() or "<!--" in text:
        raise InputError("a script of the page would end its element")
    return Markup(text)


def _policy(scripts: list[str]) -> str:
    """Forbids everything that is not part of the page."""
    sums = (hashlib.sha256(text.encode()).digest() for text in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(s).decode()}'" for s in sums)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
