"""The page as one file: what it holds, and the HTML around it.

It needs no network and cannot use one: its Content-Security-Policy allows its own
scripts, named by their SHA-256, and pictures that are part of it.
"""

import base64
import hashlib
import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jaxprune._base.errors import InputError
from jaxprune._base.files import write_text
from jaxprune.report.page import charts, facts, networks, pixels, sweeps
from jaxprune.report.page.pictures import Pictures
from jaxprune.report.page.sweeps import Sweep
from jaxprune.results.confidence import points
from jaxprune.results.result import SweepResult
from jaxprune.results.thumbnails import SHOWN

# What sweeps hold beside their curves, in bytes of the page; of further ones the curves
# alone are shown.
_DETAILS = 4_000_000
# Where there are no more classes than this, confusion is shown as a matrix.
_MATRIX = 20

_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "cross_entropy": "cross-entropy, nats",
}

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
        title = "report of a sweep"
        content = html.escape(self.html)
        return f'<iframe title="{title}" style="{style}" srcdoc="{content}"></iframe>'


def write(source: Path | str | SweepResult, path: Path | str) -> None:
    """Writes the report of saved results; see `make`."""
    make(source, Path(path).parent).save(path)


def make(source: Path | str | SweepResult, folder: Path | str | None = None) -> Page:
    """The report of a run directory, of one sweep in its folder, or of a result.

    Args:
      source: folder of the saved results, or a result.
      folder: that the page is for, which links to networks are relative to; by default
        the run directory.

    Raises:
      InputError: there is no sweep, or a file is damaged.
    """
    if not isinstance(source, SweepResult):
        source = Path(source)
    found = sweeps.find(source)
    workdir = source if isinstance(source, Path) else None
    pictures = Pictures()
    data = _data(found, pictures)
    where = Path(folder) if folder is not None else workdir
    tables: dict[str, Any] = {"compact": [], "shrunk": [], "ladder": []}
    if workdir is not None and where is not None:
        tables = {
            "compact": networks.saved_networks(workdir, where, "compact"),
            "shrunk": networks.saved_networks(workdir, where, "shrink"),
            "ladder": networks.ladder(workdir),
        }
    return Page(_render(found, data, pictures, tables))


def _data(found: list[Sweep], pictures: Pictures) -> dict[str, Any]:
    """The data that the page's script reads."""
    listed: list[dict[str, Any]] = []
    size = 0
    for i, sweep in enumerate(found):
        dot = charts.dot(i, len(found))
        shown: dict[str, Any] = {**sweep.curve(), "dot": dot, "detail": None}
        detail = sweep.detail()
        size += len(json.dumps(detail))
        if size <= _DETAILS or not listed:
            maps, places = pictures.feature_maps(sweep), pictures.thumbnails(sweep)
            shown["texts"] |= _scale(pictures.maps[maps])
            shown["detail"] = {
                **detail,
                "thumbnails": [places.get(i, -1) for i in detail["images"]],
                "pool": pictures.pool(sweep),
                "maps": maps,
            }
        listed.append(shown)
    names = [sweep.name for sweep in found]
    channels = max(len(sweep.result.order) for sweep in found)
    titles = {
        name: title
        for name, title in _TITLES.items()
        if any(name in sweep.columns for sweep in found)
    }
    return {
        "sweeps": listed,
        "embed": charts.OPTIONS,
        "matrix": _MATRIX,
        "pairs": SHOWN,
        "maps": [{"columns": maps.one.columns} for maps in pictures.maps],
        "pools": [{"columns": pool.columns} for pool in pictures.pools],
        "charts": {
            **{
                name: charts.curves(name, title, names, channels)
                for name, title in titles.items()
            },
            "shares": charts.shares(sweeps.SHARES, channels),
        },
    }


def _scale(maps: pixels.Maps) -> dict[str, str]:
    """The ends of the one scale, and what a pixel is."""
    means = (
        f", drawn as means over {maps.block} x {maps.block}" if maps.block > 1 else ""
    )
    return {"low": f"{maps.low:.3g}", "high": f"{maps.high:.3g}", "means": means}


def _render(
    found: list[Sweep],
    data: dict[str, Any],
    pictures: Pictures,
    tables: dict[str, Any],
) -> str:
    scripts = {
        "library": _script(charts.library()),
        "script": _script(_source("page.js")),
    }
    first = found[0].result
    return _TEMPLATES.get_template("page.html").render(
        policy=_policy([*scripts.values()]),
        style=Markup(_source("page.css")),
        data=data,
        sweeps=[
            {
                "name": sweep.name,
                "facts": facts.rows(sweep.result),
                "remarks": sweep.result.remarks,
                "allowed": points(sweep.result.max_drop),
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
        title=str(first.about.get("model", "network")),
        **tables,
        **scripts,
    )


def _jumps(sweep: Sweep) -> list[tuple[str, int]]:
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
