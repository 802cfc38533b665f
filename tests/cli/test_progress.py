"""One bar at a time, lines above it, and what a script ends with."""

from pathlib import Path

import pytest

from jaxprune.cli import cluster, process


def shown(capsys):
    """What has been written to the terminal, an update of the bar a piece."""
    return [piece for piece in capsys.readouterr().err.split("\r") if piece.strip()]


def test_a_bar_has_the_time_left(capsys):
    with cluster.progress(total=4, unit="img", desc="work", mininterval=0) as bar:
        bar.update(2)
    pieces = shown(capsys)
    assert pieces[0].startswith("work:   0%") and "0/4" in pieces[0]
    assert "2/4" in pieces[-1] and "<" in pieces[-1] and "img" in pieces[-1]


def test_inside_another_a_bar_only_names_the_stage(capsys):
    with cluster.progress(total=2, desc="all", mininterval=0) as outer:
        with cluster.progress(total=9, desc="part", mininterval=0) as inner:
            inner.update(5)
        outer.update()
    pieces = shown(capsys)
    assert all(piece.startswith("all:") for piece in pieces)
    assert any("0/2" in piece and "part]" in piece for piece in pieces)
    assert not any("/9" in piece for piece in pieces)
    with cluster.progress(total=9, desc="part") as bar:  # the other is closed
        assert not bar.disable
    assert shown(capsys)[0].startswith("part:")


def test_inside_a_hidden_one_a_bar_is_shown(capsys):
    with (
        cluster.progress(total=1, desc="all", hide=True),
        cluster.progress(total=9, desc="part"),
    ):
        pass
    pieces = shown(capsys)
    assert pieces and all(piece.startswith("part:") for piece in pieces)


def test_a_bar_that_an_error_ended_hides_no_other(capsys):
    with pytest.raises(ValueError), cluster.progress(total=2, desc="all"):
        raise ValueError
    with cluster.progress(total=9, desc="part"):
        assert "part:" in shown(capsys)[-1]


def test_another_process_shows_nothing(capsys, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with cluster.progress(total=2, desc="all") as bar:
        bar.update()
    assert shown(capsys) == []


def test_a_line_goes_above_the_bar(capsys):
    with cluster.progress(total=2, desc="all"):
        cluster.say("a line")
    assert capsys.readouterr().out == "a line\n"


def test_a_script_ends_with_the_first_three_that_exist(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for name in "abcd":
        Path("run", name).touch()
    process.finish(*(Path(p) for p in ("run", "no", "run/a", "run/b", "run/c")))
    assert capsys.readouterr().out == "open next:\n  run/\n  run/a\n  run/b\n"
