"""The report in a real browser: the slider moves everything, nothing is sent."""

import csv
import re

import numpy as np
import pytest

from browser import chromium, complaints, frames, look, requests, wait
from jaxprune.report import page
from planted_sweeps import EVIL, plant_ladder, plant_network, planted_sweep

pytestmark = pytest.mark.browser

ZERO = {"seed": 3, "channels": 24}
LINEAR = {"seed": 1, "fill": "linear", "ks": (0, 3, 6, 9)}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    planted_sweep(**ZERO).save(folder / "sweep-conv-mean-zero")
    planted_sweep(**LINEAR).save(folder / "sweep-conv-mean-linear")
    plant_network(folder / "compact-conv-mean-zero-k3")
    plant_ladder(folder)
    page.write(folder, folder / "report.html")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


NAME = "conv · mean · zero"


@pytest.fixture
def opened(browser, workdir):
    """The page at K = 0 of the sweep with zeroes."""
    look(browser, workdir / "report.html", f"#k=0&sweep={NAME.replace(' ', '%20')}")
    return browser


def slide(browser, row):
    browser.execute_script(
        "const k = document.getElementById('k'); k.value = arguments[0];"
        "k.dispatchEvent(new Event('input', {bubbles: true}))",
        row,
    )
    frames(browser)


def texts(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(n => n.textContent)",
        selector,
    )


def now(browser):
    return int(texts(browser, "#k-now")[0])


def number(text):
    return float(text.replace("\N{MINUS SIGN}", "-"))


def test_the_numbers_at_k_are_those_of_sweep_csv(opened, workdir):
    with open(workdir / "sweep-conv-mean-zero" / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in (0, 7, 1, 23, 12):
        slide(opened, row)
        assert now(opened) == int(rows[row]["k"])
        for name in ("accuracy", "accuracy_low", "balanced_accuracy_high", "change_low",
                     "cross_entropy", "cross_entropy_low"):  # fmt: skip
            for text in texts(opened, f"[data-column={name}]"):
                assert abs(number(text) - float(rows[row][name])) <= 5.1e-5, name
    assert complaints(opened) == []


@pytest.mark.parametrize("column", ["accuracy", "balanced_accuracy", "cross_entropy"])
def test_the_band_is_that_of_the_sweep_that_is_looked_at(opened, column):
    paths = opened.execute_script(
        f"return [...document.querySelectorAll('#chart-{column} .mark-area path')]"
        ".map(n => n.getAttribute('d'))"
    )
    high = []
    for path in paths:  # along one edge and back along the other
        points = re.findall(r"[ML]([\d.]+),([\d.]+)", path)
        (x, y), (back_x, back_y) = points[0], points[-1]
        assert x == back_x
        high.append(abs(float(y) - float(back_y)) > 1)
    assert sorted(high) == [False, True]


def test_pruned_channels_are_grey(opened):
    order = planted_sweep(**ZERO).order
    for row in (5, 2, 23, 0):
        slide(opened, row)
        grey = opened.execute_script(
            "return [...document.querySelectorAll('.pruned')]"
            ".map(n => +n.dataset.channel)"
        )
        assert grey == order[:row].tolist()
    slide(opened, 4)
    opened.execute_script("document.querySelector('[name=sort][value=index]').click()")
    shown = (
        "return [...document.querySelectorAll('.tile')].map(n => +n.dataset.channel)"
    )
    assert opened.execute_script(shown) == [*range(24)]
    one = opened.execute_script(
        "return getComputedStyle(document.querySelector('.tile')).backgroundImage"
    )
    opened.execute_script("document.querySelector('[name=scale][value=each]').click()")
    assert one != opened.execute_script(
        "return getComputedStyle(document.querySelector('.tile')).backgroundImage"
    )


def test_confusion_images_and_shares_at_k(opened):
    result = planted_sweep(**ZERO)
    names = [EVIL, "class 1", "class 2", "class 3"]
    for row in (9, 23, 4):
        slide(opened, row)
        counts = result.confusion[row]
        share = 100 * counts / counts.sum(1, keepdims=True)
        change = share - 100 * result.confusion[0] / counts.sum(1, keepdims=True)
        for table, expected in (("confusion", share), ("difference", change)):
            cells = [number(t) for t in texts(opened, f"#{table} td")]
            np.testing.assert_allclose(cells, expected.ravel(), atol=0.0501)
        right = result.right
        lost, won = right[0] & ~right[row], ~right[0] & right[row]
        for kind, images in (("lost", lost), ("won", won)):
            assert texts(opened, f"#{kind}-count") == [str(images.sum())]
            first = (right != right[0]).argmax(0)
            chosen = sorted(np.flatnonzero(images), key=lambda i: (first[i], i))[:24]
            found = texts(opened, f"#{kind} li:not([hidden]) span:last-child")
            before, after = result.predictions[0], result.predictions[row]
            assert found == [f"{names[before[i]]} → {names[after[i]]}" for i in chosen]
        shares = [float(t[:-2]) for t in texts(opened, "#shares td:last-child")]
        expected = 100 * np.bincount(result.predictions[row], minlength=4) / 60
        np.testing.assert_allclose(shares, expected, atol=0.1)
        assert round(sum(shares), 6) == 100


def test_keys_move_k_and_the_address_opens_there(opened, workdir):
    from selenium.webdriver.common.keys import Keys

    slider = opened.find_element("id", "k")
    for key, k in ((Keys.ARROW_RIGHT, 1), (Keys.PAGE_UP, 17), (Keys.ARROW_LEFT, 16),
                   (Keys.PAGE_DOWN, 0), (Keys.END, 23)):  # fmt: skip
        slider.send_keys(key)
        frames(opened)
        assert now(opened) == k
    wait(opened, "location.hash.startsWith('#k=23&')")
    opened.find_element("tag name", "body").send_keys(Keys.ARROW_LEFT)
    frames(opened)
    assert now(opened) == 22
    look(opened, workdir / "report.html", f"#k=6&sweep={NAME.replace(' ', '%20')}")
    assert now(opened) == 6
    look(opened, workdir / "report.html")
    first = page.document.sweeps.find(workdir)[0]
    assert now(opened) == first.marked["largest_safe_k"]


def test_curves_are_switched_and_sweeps_chosen(opened):
    count = "return document.querySelectorAll('#chart-accuracy .mark-line path').length"
    assert opened.execute_script(count) == 2
    opened.execute_script("document.querySelector('#legend input').click()")
    frames(opened)
    assert opened.execute_script(count) == 1
    options = texts(opened, "#sweep option")
    other = options.index("conv · mean · linear")
    opened.execute_script(
        "const s = document.getElementById('sweep'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('change'))",
        other,
    )
    slide(opened, 3)
    assert now(opened) == 9
    assert len(texts(opened, ".tile")) == 12
    for details in ("figures", "channels"):
        opened.execute_script(
            f"document.querySelector('[data-table={details}]').open = 1"
        )
        wait(opened, f"document.querySelector('[data-table={details}] table') !== null")
    assert len(texts(opened, "[data-table=figures] tr")) == 5
    assert len(texts(opened, "[data-table=channels] tr")) == 13
    assert complaints(opened) == []


def test_nothing_leaves_the_page_and_nothing_is_injected(opened, workdir):
    slide(opened, 11)
    opened.execute_script(
        "document.querySelectorAll('details').forEach(d => d.open = 1)"
    )
    frames(opened)
    assert opened.execute_script("return window.hacked") is None
    assert EVIL in texts(opened, "#confusion th")
    assert {url.split("#")[0] for url in requests(opened)} == {
        (workdir / "report.html").as_uri()
    }
    assert complaints(opened) == []


# Contrast of every text with what lies behind it (WCAG 2: 4.5, large text 3).
CONTRAST = """
const options = {willReadFrequently: true};
const paint = document.createElement('canvas').getContext('2d', options);
const rgba = (colour) => {
  paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
  return [...paint.getImageData(0, 0, 1, 1).data];
};
const light = (c) => c.slice(0, 3).map(x => x / 255)
  .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
  .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (node) => {
  for (let n = node; n; n = n.parentElement) {
    const c = rgba(getComputedStyle(n).backgroundColor);
    if (c[3] === 255) return c;
  }
  return [255, 255, 255];
};
const bad = [];
for (const node of document.querySelectorAll('body *')) {
  const own = [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!own || !node.checkVisibility()) continue;
  if (node.matches('script, style, option')) continue;
  const style = getComputedStyle(node);
  const front = rgba(node instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [light(front), light(behind(node))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  const large = parseFloat(style.fontSize) >= 24;
  const text = node.textContent.slice(0, 20);
  if (ratio < (large ? 3 : 4.5)) bad.push(`${node.tagName} ${text} ${ratio}`);
}
return bad;
"""


def slide_budget(browser, row):
    browser.execute_script(
        "const slider = document.getElementById('budget');"
        "slider.value = arguments[0];"
        "slider.dispatchEvent(new Event('input', {bubbles: true}))",
        row,
    )
    frames(browser)


def whole(browser):
    """Name, score, multiply-adds, widths, lost and won of the budget that is shown."""
    (name,), (score,), (adds,) = (
        texts(browser, f"#budget-{part}") for part in ("now", "score", "multiply_adds")
    )
    widths = texts(browser, "#widths li > :last-child")
    moved = [
        texts(browser, f"#budget-{kind} li:not([hidden]) span:last-child")
        for kind in ("lost", "won")
    ]
    return [name, score, adds, widths, *moved]


def test_the_slider_of_budgets(opened):
    to = "\N{RIGHTWARDS ARROW}"
    last = [
        "latency 2", "0.8500", "\N{DIVISION SIGN} 3.00", [f"8 {to} 3", f"4 {to} 2"],
        [f"class 0 {to} class 1", f"class 1 {to} class 2"], [f"class 3 {to} class 2"],
    ]  # fmt: skip
    assert whole(opened) == last
    slide_budget(opened, 0)
    first = ["whole network", "0.9000", "\N{DIVISION SIGN} 1.00", ["8", "4"], [], []]
    assert whole(opened) == first
    before = now(opened)
    opened.execute_script("document.querySelectorAll('#ladder tbody tr')[1].click()")
    assert whole(opened) == last and now(opened) == before
    bars = opened.execute_script(
        "return [...document.querySelectorAll('.track')].map(n =>"
        "[n.offsetWidth, n.firstChild.offsetWidth])"
    )
    for (outer, inner), (widest, width) in zip(bars, [(8, 3), (4, 2)], strict=True):
        assert inner == pytest.approx(outer * width / widest, abs=1)
    assert complaints(opened) == []


def test_a_page_of_budgets_alone(browser, tmp_path):
    plant_ladder(tmp_path)
    page.write(tmp_path, tmp_path / "report.html")
    look(browser, tmp_path / "report.html")
    assert whole(browser)[0] == "latency 2"
    slide_budget(browser, 1)
    assert whole(browser)[:2] == ["speedup 1.5", "0.8750"]
    assert complaints(browser) == [] and requests(browser)[1:] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_is_readable(browser, workdir, scheme, width):
    look(browser, workdir / "report.html", "#k=9", width, scheme)
    slide(browser, 3)
    assert browser.execute_script(CONTRAST) == []
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width


@pytest.mark.parametrize(
    ("classes", "channels", "shape"),
    [(2, 2, (1, 1)), (1000, 8, (2, 2)), (3, 2048, (56, 56))],
)
def test_few_and_many(browser, tmp_path, classes, channels, shape):
    ks = None if channels < 100 else (0, 700, 2047)
    result = planted_sweep(channels, 3 * classes, classes, shape, ks)
    page.write(result, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 8e6
    look(browser, tmp_path / "report.html")
    slide(browser, len(result.ks) - 1)
    assert len(texts(browser, ".tile")) == channels
    assert len(texts(browser, ".pruned")) == result.ks[-1]
    matrix = browser.execute_script(
        "return document.getElementById('confusion').checkVisibility()"
    )
    assert matrix == (classes <= 20)
    if not matrix:
        (row, *_) = browser.execute_script(
            "return [...document.querySelectorAll('#changed-pairs tbody tr')]"
            ".map(r => [...r.cells].map(c => c.textContent))"
        )
        true, predicted = (result.class_names.index(name) for name in row[:2])
        before, after = (
            np.count_nonzero((result.labels == true) & (p == predicted))
            for p in result.predictions[[0, -1]]
        )
        assert [int(x) for x in row[2:4]] == [before, after]
        assert number(row[4]) == after - before
    assert complaints(browser) == []


@pytest.mark.slow
def test_a_large_sweep_is_quick(browser, tmp_path, record_property):
    """512 K, 10,000 images: opens in under 2 s, a slide takes under 50 ms."""
    result = planted_sweep(512, 10_000, 10, (2, 2), side=32)
    page.write(result, tmp_path / "report.html")
    size = (tmp_path / "report.html").stat().st_size
    opening = []
    for _ in range(3):
        look(browser, tmp_path / "report.html")
        opening.append(float(browser.execute_script(READY)))
    slides = browser.execute_async_script(SLIDES)
    record_property("bytes", size)
    record_property("opening, ms", opening)
    record_property("slide, median ms", sorted(slides)[len(slides) // 2])
    assert size < 8e6
    assert min(opening) < 2000
    assert sorted(slides)[len(slides) // 2] < 50


READY = "return document.body.dataset.ready"
SLIDES = """
(async () => {
const done = arguments[0], k = document.getElementById('k'), took = [];
const frame = () => new Promise(requestAnimationFrame);
for (let i = 0; i < 60; i++) {
  await frame();
  const begun = performance.now();
  k.value = (Number(k.value) + 1 + i * 37) % 512;
  k.dispatchEvent(new Event('input', {bubbles: true}));
  await frame(); await frame();
  took.push(performance.now() - begun);
}
done(took);
})();
"""
