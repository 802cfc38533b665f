"""Whatever is asked of the API, it answers in one line, at the entry."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_calls_that_make_no_sense(record_property):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, str(HERE / "api_calls.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, right = json.loads(done.stdout.splitlines()[-1])
    other = {
        name: (kind, message[:200])
        for name, (kind, message) in refused.items()
        if kind != "InputError" or not message or "\n" in message
    }
    other |= {name: found for name, found in right.items() if found[0] != "right"}
    counts = {"equal": len(right), "refused": len(refused)}
    if not other:
        record_property("campaign", json.dumps(["calls of the API", counts]))
    assert not other
    assert len(refused) + len(right) > 200
