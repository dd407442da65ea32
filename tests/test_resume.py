"""A killed run goes on as if nothing had happened: one kill of each kind; sixty by `tests/kills.py`. Kills by
the clock, signals and full disks by `tests/faults.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parent / 'kills.py'
FAULTS = KILLS.with_name('faults.py')
ENV = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(KILLS.parent.parent))


@pytest.mark.parametrize('method', ['nested_consolidated', pytest.param('der_pp', marks=pytest.mark.slow)])
def test_kill_and_resume(method):
    done = subprocess.run(
        [sys.executable, KILLS, '--each', '1', '--methods', method], capture_output=True, text=True, env=ENV
    )
    assert done.returncode == 0 and 'all the same' in done.stdout, done.stdout + done.stderr
    assert done.stdout.count('killed, resumed to the same') == 6


@pytest.mark.slow
def test_all_kills():
    done = subprocess.run([sys.executable, KILLS], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and done.stdout.count('killed, resumed to the same') == 60, (
        done.stdout + done.stderr
    )


@pytest.mark.slow
def test_faults():
    done = subprocess.run([sys.executable, FAULTS], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and 'all as it should be' in done.stdout, done.stdout + done.stderr
    assert done.stdout.count('resumed to the same') >= 35
