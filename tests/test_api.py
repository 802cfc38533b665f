"""Whatever is asked of the API, it answers in one line, at the entry."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_calls_that_make_no_sense():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, str(HERE / "api_calls.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) > 130
    other = {
        name: (kind, message[:200])
        for name, (kind, message) in outcomes.items()
        if kind != "InputError" or not message or "\n" in message
    }
    assert not other
