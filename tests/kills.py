"""Kill a run at chosen points, take it up again, and compare it with one that was never stopped:
`python tests/kills.py [--each 5]`.

Six kinds of points: before a step, inside one (after the backward pass), after one, while a checkpoint is
written, while it is renamed, and while the network is evaluated. Each is struck by SIGKILL at five places of
a run over digits, for two methods."""

import argparse
import io
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import torch

import nested_learning.core
import nested_learning.measure.evaluation
import nested_learning.runs.experiment
import nested_learning.train.checkpoints
import nested_learning.train.learner
from nested_learning.config.load import load_config
from nested_learning.runs.experiment import resume, run
from nested_learning.runs.finished import Run
from nested_learning.train.learner import StepDone

POINTS = {  # kind -> how many times it happens before the kill
    'before a step': (38, 1, 77, 111, 143),
    'inside a step': (64, 2, 29, 100, 140),
    'after a step': (45, 7, 71, 90, 126),
    'writing a checkpoint': (5, 1, 3, 9, 13),
    'renaming a checkpoint': (4, 1, 6, 10, 12),
    'evaluating': (4, 1, 2, 3, 5),
}
METHODS = ('nested_consolidated', 'der_pp')
SMALL = dict(
    image_size=[16, 16],
    base_channels=4,
    periods=[1, 5, 20],
    inner='AdamW',
    learning_rate=0.005,
    memory_size=50,
    device='cpu',
    threads=1,
    checkpoint_every=11,
)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def strike(module, name, count, before=None, after=None):
    "Replace a function by one that dies at its `count`-th call, before or after doing its work."
    work, calls = getattr(module, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count and before:
            before(*args, **kwargs)
        result = work(*args, **kwargs)
        if calls[0] == count and after:
            after(*args, **kwargs)
        return result

    setattr(module, name, wrapped)


def half_written(state, path):
    "Write half of a checkpoint, and die."
    whole = io.BytesIO()
    torch.serialization.save(state, whole)
    Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    die()


class CheckpointNames:
    "Stand in for `os` where files are renamed; die around the `count`-th renaming of a checkpoint."

    def __init__(self, count):
        self.count, self.seen = count, 0

    def __getattr__(self, name):
        return getattr(os, name)

    def replace(self, source, target):
        self.seen += Path(target).name.startswith('checkpoint')
        due = Path(target).name.startswith('checkpoint') and self.seen == self.count
        if due and self.count % 2:
            die()
        os.replace(source, target)
        if due:
            die()


def prepare(kind, count):
    "Arm the present process; give the listeners of its run."

    def kill(*args, **kwargs):
        die()

    if kind == 'before a step':
        strike(nested_learning.train.learner, 'forward', count, before=kill)
    elif kind == 'inside a step':
        strike(torch.Tensor, 'backward', count, after=kill)
    elif kind == 'evaluating':
        strike(nested_learning.measure.evaluation, 'count_correct', count, before=kill)
    elif kind == 'writing a checkpoint':
        strike(nested_learning.train.checkpoints.torch, 'save', count, before=half_written)
    elif kind == 'renaming a checkpoint':
        nested_learning.core.os = CheckpointNames(count)
    else:
        return [lambda event: die() if isinstance(event, StepDone) and event.step == count else None]
    return []


def in_child(task):
    "Do a task in a child process; give how it ended."
    child = os.fork()
    if child == 0:
        try:
            task()
        except BaseException as e:
            print(f'{type(e).__name__}: {e}', file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def configuration(method, run_dir):
    return load_config(SMALL, method=method, run_dir=str(run_dir))


def check_same(run_dir, whole_dir):
    "Compare everything but time and place."
    ours, theirs = Run(run_dir), Run(whole_dir)
    assert (
        ours.info['status'] == 'finished'
        and ours.weights_hash == theirs.weights_hash
        and ours.info['stream_hash'] == theirs.info['stream_hash']
    )
    for kind in ('steps', 'evaluations', 'ood'):
        pd.testing.assert_frame_equal(getattr(ours, kind), getattr(theirs, kind))
    assert {k: v for k, v in ours.cost.items() if k not in ('seconds', 'peak_bytes')} == {
        k: v for k, v in theirs.cost.items() if k not in ('seconds', 'peak_bytes')
    }


def survives(method, kind, count, place, whole):
    "Kill a run, resume it, compare it; say how it went."
    ended = in_child(
        lambda: run(configuration(method, place), listeners=prepare(kind, count), progress=False)
    )
    killed = ended == -signal.SIGKILL
    same = killed and in_child(lambda: resume(place, progress=False)) == 0
    same = same and in_child(lambda: check_same(place, whole)) == 0
    how = 'killed' if killed else f'ended with {ended}'
    then = 'resumed to the same' if same else 'NOT the same'
    print(f'{method:20} {kind:22} {count:4}  {how}, {then}', flush=True)
    return same


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--each', type=int, default=5, help='places for each kind of point, 1 to 5')
    parser.add_argument('--methods', nargs='*', default=list(METHODS), choices=list(METHODS))
    asked = parser.parse_args()
    warnings.simplefilter('ignore')
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for method in asked.methods:
            whole = Path(folder) / f'{method}-whole'
            assert in_child(lambda: run(configuration(method, whole), progress=False)) == 0
            for kind, counts in POINTS.items():
                for count in counts[: asked.each]:
                    place = Path(folder) / f'{method}-{kind}-{count}'.replace(' ', '-')
                    failed += not survives(method, kind, count, place, whole)
    print('all the same' if not failed else f'{failed} not the same')
    sys.exit(failed > 0)


if __name__ == '__main__':
    main()
