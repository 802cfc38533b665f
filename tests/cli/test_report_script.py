"""The report from the command line, and at the end of a sweep.

The network is drawn, not trained: nothing here looks at how good it is.
"""

import shutil
from pathlib import Path

import pytest

from jaxprune._base import processes
from jaxprune.cli.commands import plot, report, sweep
from planted_sweeps import page_data
from run_directories import opened, plant_run

RUN = Path("runs/digits_pair")
PAGE = RUN / "report.html"
SWEEP = RUN / "sweep-conv3-abs_mean-bias"
FLAGS = ("--model=digits_pair", "--ks=0:4")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A run directory with a checkpoint and, once it is made, a sweep and its page."""
    return tmp_path_factory.mktemp("planted") / "run"


@pytest.fixture
def swept(planted, script):
    """A copy of it as the default run directory; what the sweep printed."""
    if not planted.exists():
        plant_run(planted)
        code, out, err = script(sweep, f"--workdir={planted}", *FLAGS)
        assert code == 0, err
        (planted / "out.txt").write_text(out)
    shutil.copytree(planted, RUN)
    return (RUN / "out.txt").read_text()


def test_a_sweep_ends_with_the_page(swept):
    assert Path(opened(swept)[0]).name == PAGE.name
    (shown,) = page_data(PAGE.read_text())["sweeps"]
    assert shown["name"] == "conv3 · abs_mean · bias" and shown["ks"] == [0, 1, 2, 3]


def test_noreport_leaves_it_out(swept, script):
    PAGE.unlink()
    code, out, err = script(sweep, *FLAGS, "--fill=zero", "--noreport")
    assert code == 0, err
    assert not PAGE.exists() and "report.html" not in out
    code, out, err = script(report, f"--workdir={RUN}")
    assert code == 0, err
    assert out == f"open next:\n  {PAGE}\n"
    shown = page_data(PAGE.read_text())["sweeps"]
    assert {s["name"].split(" · ")[-1] for s in shown} == {"bias", "zero"}


def test_it_needs_saved_results_alone(swept, script):
    before = PAGE.read_text()
    shutil.rmtree(RUN / "checkpoints")
    (RUN / "config.json").unlink()
    assert script(report, f"--workdir={RUN}")[0] == 0
    assert PAGE.read_text() == before


def test_pictures_in_another_format(swept, script):
    code, out, err = script(plot, f"--workdir={RUN}", "--format=pdf")
    assert code == 0, err
    names = {path.stem for path in SWEEP.glob("*.pdf")}
    assert names == {"accuracy_vs_k", "confusion", "feature_maps", "scores"}
    assert out.startswith(f"{len([*RUN.rglob('*.pdf')])} pictures in")
    code, _, err = script(plot, f"--workdir={RUN}", "--format=gif")
    assert code == 2 and "gif" in err


def test_only_the_first_process_writes_it(swept, script, monkeypatch):
    PAGE.unlink()
    monkeypatch.setattr(processes, "is_first", lambda: False)
    assert report.write(RUN) == []
    assert not PAGE.exists()


def fails(script, *arguments):
    before = {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    code, out, err = script(report, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    after = {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    assert before == after
    return err


def test_bad_input_is_one_line(swept, script):
    assert "say which run with --workdir" in fails(script)
    assert "holds nothing to report: run jaxprune sweep or shrink first" in fails(
        script, "--workdir=no"
    )
    assert not Path("no").exists()
    path = SWEEP / "sweep.csv"
    path.write_text(path.read_text().replace("0", "1", 1))
    line = fails(script, f"--workdir={RUN}")
    assert "sweep.csv does not match its sha256" in line


def test_a_damaged_neighbour_does_not_fail_a_sweep(swept, script):
    other = RUN / "sweep-conv3-abs_mean-mean"
    shutil.copytree(SWEEP, other)
    (other / "sweep.npz").write_bytes(b"")
    code, out, err = script(sweep, *FLAGS)
    assert code == 0, err
    assert "not written: the sweep in" in out and other.name in out
