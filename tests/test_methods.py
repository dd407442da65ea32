"Methods in whole runs: what they must not notice, and the accuracies they had when the results were made."

import json
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from conftest import ROOT

from nested_learning.config.components import find, table
from nested_learning.config.load import load_config
from nested_learning.core import hash_tensors
from nested_learning.measure.metrics import mean_interval
from nested_learning.runs.experiment import run
from nested_learning.train.build import build

SMALL = dict(
    network='mlp',
    base_channels=8,
    inner='SGD',
    learning_rate=0.05,
    memory_size=60,
    batch_size=50,
    holdout=0.2,
    device='cpu',
    threads=1,
)
RESULTS = json.loads((ROOT / 'nbs/runs/results/digits.json').read_text(encoding='utf-8'))


def learner(method, **keys):
    options = dict(method_options={'epochs': 2}) if method == 'gdumb' else {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return build(load_config({**SMALL, **options}, **keys, method=method))


def answers(learner):
    "Run to the end; hash every read-out."
    for _ in learner.run():
        pass
    return [hash_tensors(module.state_dict()) for module in learner.method.readout().values()]


@pytest.mark.parametrize('method', table('method'))
def test_looking_and_boundaries(method):
    "Evaluating more often changes nothing; nor do the tasks' ends for a method that does not ask for them."
    plain = answers(learner(method))
    assert answers(learner(method, eval_every=4)) == plain
    renamed = learner(method)
    renamed.batches.task_ends = [30, 400, 450, 451, renamed.batches.end]
    renamed.batches.task_starts = [0, 30, 400, 450, 451]
    assert (answers(renamed) == plain) == (not renamed.method.needs_boundaries)


@pytest.mark.parametrize('method', [m for m in table('method') if find('method', m).needs_memory])
def test_memory_holds_the_stream_only(method):
    done = learner(method)
    shown = set(done.stream.table['sample'])
    for _ in done.run():
        assert len(done.memory) <= 60
    _, labels, samples = done.memory.take(range(len(done.memory)))[:3]
    assert set(samples.tolist()) <= shown and (labels >= 0).all()
    held_out = set(done.holdout.indices.tolist())
    assert not {done.batches.fetch.split.indices[s] for s in samples.tolist() if s >= 0} & held_out


def accuracy(method, seed, folder):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        done = run(
            load_config(
                ROOT / 'nbs/runs/configs/digits.yaml',
                method=method,
                seed=seed,
                run_dir=f'{folder}/{method}-{seed}',
            ),
            progress=False,
        )
    R = done.R
    return float(R[-1].mean())


def test_golden_accuracy_of_replay(tmp_path):
    (expected,) = [row['accuracy'] for row in RESULTS['methods']['er'] if row['seed'] == 0]
    assert abs(accuracy('er', 0, tmp_path) - expected) < 0.1


@pytest.mark.slow
def test_golden_accuracies(tmp_path):
    """Three seeds of every method, within five points of the committed results or what seeds differ by:
    kinds of machine round differently."""
    jobs = [(method, seed) for method in RESULTS['methods'] for seed in (0, 1, 2)]
    with ProcessPoolExecutor(2, mp_context=get_context('spawn')) as pool:
        found = dict(zip(jobs, pool.map(accuracy, *zip(*jobs), [tmp_path] * len(jobs))))
    expected = {
        (method, row['seed']): row['accuracy'] for method, rows in RESULTS['methods'].items() for row in rows
    }
    apart = {
        method: np.mean([found[method, s] - expected[method, s] for s in (0, 1, 2)])
        for method in RESULTS['methods']
    }
    allowed = {
        method: max(0.05, mean_interval([row['accuracy'] for row in rows])[1])
        for method, rows in RESULTS['methods'].items()
    }
    assert all(abs(apart[method]) < allowed[method] for method in apart), (apart, allowed)


LONG = """
import os, sys, warnings
warnings.simplefilter('ignore')
from nested_learning.config.load import load_config
from nested_learning.runs.experiment import run
from nested_learning.train.learner import StepDone

page, seen = os.sysconf('SC_PAGE_SIZE'), {}

def resident(event):
    if isinstance(event, StepDone) and event.step in (5000, 100000):
        seen[event.step] = page * int(open('/proc/self/statm').read().split()[1])

config = load_config(
    method='er', network='mlp', base_channels=8, inner='SGD', learning_rate=1e-4, memory_size=50,
    batch_size=50, updates_per_batch=3572, device='cpu', threads=1, run_dir=sys.argv[1],
)
run(config, listeners=[resident], progress=False)
print(seen[5000], seen[100000])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_of_a_long_run(tmp_path):
    "A hundred thousand steps: resident memory grows by less than one percent after the first five thousand."
    out = subprocess.run(
        [sys.executable, '-c', LONG, tmp_path / 'long'], capture_output=True, text=True, cwd=ROOT
    )
    assert out.returncode == 0, out.stderr
    early, late = map(int, out.stdout.split())
    assert late < 1.01 * early, (early, late)
