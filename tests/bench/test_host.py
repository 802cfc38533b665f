import csv

from experiments.bench import host


def test_dispatches_are_counted_and_few(monkeypatch, tmp_path, capsys):
    """Three batches: of the sweep a few a batch; of the loop one for each K, too."""
    monkeypatch.setattr(host, "CHANNELS", 24)
    monkeypatch.setattr(host, "BATCH", 16)
    counts = []
    for images in (16, 48):
        host.main(images, 1, tmp_path)
        with open(tmp_path / "bench_host.csv") as file:
            rows = {row["what"]: row for row in csv.DictReader(file)}
        counts.append([int(row["dispatches"]) for row in rows.values()])
        assert all(float(row["python_seconds"]) > 0 for row in rows.values())
    (sweep, loop), (sweep_of_three, loop_of_three) = counts
    # The trunk and all K: two programs for each of two more batches.
    assert sweep_of_three - sweep == 2 * 2
    assert (loop, loop_of_three) == (24, 3 * 24)
    assert "48 images in 3 batches, 24 K" in capsys.readouterr().out
