"""One run on several processes is the run of one process: equal weights and accuracies, whatever the method;
killed in one process or in all, it goes on with another number of them."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from nested_learning.config.load import load_config
from nested_learning.core import use_threads
from nested_learning.optim.nested import NestedOptimizer
from nested_learning.optim.ranks import LostProcess, Ranks, current_ranks, use_ranks
from nested_learning.runs.finished import Run
from nested_learning.runs.grid import run_or_resume
from nested_learning.train.build import build
from nested_learning.train.checkpoints import load_checked
from nested_learning.train.learner import Learner, StepDone
from nested_learning.train.processes import follow

DIGITS = dict(
    dataset_name='digits',
    num_tasks=3,
    classes_per_task=2,
    class_order=[0, 1, 2, 3, 4, 5],
    network='mlp',
    inner='SGD',
    learning_rate=0.02,
    device='cpu',
    threads=1,
)
# a small rate: training with a large one amplifies differences by rounding a thousandfold
LEVELS = dict(
    network='nested_cnn', periods=[1, 3, 7], base_channels=4, image_size=[16, 16], learning_rate=0.002
)
NESTED = dict(LEVELS, method='nested_er', memory_size=50)
RUNS = {
    'er': dict(method='er', memory_size=50),
    'nested_er': NESTED,
    'consolidated': dict(method='consolidated'),
}


def in_processes(size, work, *args, folder):
    "Call `work(*args)` in forked processes; return their exit codes and results by rank."
    fork = multiprocessing.get_context('fork')
    folder.mkdir()
    pipes = [fork.Pipe() for _ in range(size)]
    started = [
        fork.Process(target=_join, args=(rank, size, folder / 'store', ours, work, args))
        for rank, (_, ours) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    results = [receive(process, theirs) for process, (theirs, _) in zip(started, pipes)]
    for process in started:
        process.join(60)
    return [process.exitcode for process in started], results


def receive(process, pipe):
    "The result of a process; None if it has died."
    while process.is_alive() and not pipe.poll(0.1):
        pass
    return pipe.recv() if pipe.poll() else None


def _join(rank, size, store, pipe, work, args):
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    store = dist.FileStore(str(store), size)
    dist.init_process_group('gloo', store=store, rank=rank, world_size=size)
    try:
        with use_ranks(Ranks(store)):
            pipe.send(work(*args))
    except LostProcess:
        sys.exit(3)
    dist.barrier()


def take_part(keys, dying=(), at=None):
    "Make or resume a run as `nl-run` does; the processes in `dying` die before step `at`."
    step = Learner.step
    ranks = current_ranks()

    def die_in_time(learner, batch):
        if learner.steps == at and ranks.rank in dying:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(learner, batch)

    Learner.step = die_in_time
    try:
        if not ranks.is_first:
            return follow()
        with contextlib.redirect_stderr(None):
            run_or_resume(load_config(**keys), progress=False)
        ranks.broadcast(None)
    finally:
        Learner.step = step


def make_run(folder, size, keys, run_dir=None, **faults):
    "Make or resume a run in several processes; return their exit codes."
    keys = dict(DIGITS, **keys, run_dir=str(run_dir or folder))
    work = folder.with_name(f'{folder.name}-processes')
    return in_processes(size, take_part, keys, *faults.values(), folder=work)[0]


def make_alone(folder, keys):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return run_or_resume(load_config(**{**DIGITS, **keys}, run_dir=str(folder)), progress=False)


def assert_same_run(one, other, atol=2e-5):
    "Compare accuracy matrices, rows of steps, costs and weights."
    np.testing.assert_array_equal(one.R, other.R)
    np.testing.assert_array_equal(one.R_task, other.R_task)
    assert list(one.steps.moved) == list(other.steps.moved)
    for column in ('accuracy', 'replayed', 'position'):
        np.testing.assert_array_equal(one.steps[column], other.steps[column])
    np.testing.assert_allclose(one.steps.loss, other.steps.loss, atol=1e-4)
    changed = ('seconds', 'peak_bytes')
    costs = [{name: n for name, n in run.cost.items() if name not in changed} for run in (one, other)]
    assert costs[0] == costs[1]
    mine, theirs = (load_checked(run.dir / 'model.pt') for run in (one, other))
    assert list(mine) == list(theirs)
    for readout in mine:
        for name in mine[readout]:
            torch.testing.assert_close(mine[readout][name], theirs[readout][name], atol=atol, rtol=0)


@pytest.mark.parametrize('name', RUNS)
def test_processes_equal_one(name, tmp_path):
    "Two and three processes: the accuracy matrix, every step, the cost and the weights of one."
    one = make_alone(tmp_path / 'one', RUNS[name])
    for size in (2, 3):
        folder = tmp_path / f'{size}'
        assert make_run(folder, size, RUNS[name]) == [0] * size
        run = Run(folder)
        assert_same_run(one, run)
        assert run.info['processes'] == size and run.info['config_hash'] == one.info['config_hash']
        waits = (name == 'nested_er') & (run.steps.step % 10 != 0)  # for its sum, but where drift is measured
        norms = one.steps.grad_norm.mask(waits)
        np.testing.assert_allclose(run.steps.grad_norm, norms, rtol=1e-4)
        assert norms.notna().sum() > 5


@pytest.mark.parametrize(
    'dying, before, after',
    [((1,), 3, 2), ((0,), 2, 1), ((0, 1), 2, 3), ((0,), 1, 2)],
    ids=['one dies', 'the first dies', 'all die', 'one alone dies'],
)
def test_killed_and_resumed_with_another_number(dying, before, after, tmp_path):
    "Slow levels hold gradients at the kill; the run goes on from the checkpoint before it."
    keys = dict(NESTED, checkpoint_every=11)
    one = make_alone(tmp_path / 'one', keys)
    folder = tmp_path / 'killed'
    codes = make_run(folder, before, keys, dying=dying, at=40)
    assert codes == [-signal.SIGKILL if rank in dying else 3 for rank in range(before)]
    status = Run(folder).info['status']
    assert status == ('running' if 0 in dying else 'stopped')
    assert make_run(tmp_path / 'again', after, keys, run_dir=folder) == [0] * after
    assert_same_run(one, Run(folder))
    assert 'goes on from checkpoint-00000033.pt' in (folder / 'log.txt').read_text()


def test_resumed_with_the_same_number_to_the_bit(tmp_path):
    keys = dict(NESTED, checkpoint_every=11)
    assert make_run(tmp_path / 'whole', 2, keys) == [0, 0]
    make_run(tmp_path / 'killed', 2, keys, dying=(1,), at=40)
    make_run(tmp_path / 'again', 2, keys, run_dir=tmp_path / 'killed')
    assert Run(tmp_path / 'killed').weights_hash == Run(tmp_path / 'whole').weights_hash


CASES = {  # what else several processes can train, each with what makes it special
    'fine_tune': dict(method='fine_tune', augment='crop'),
    'er_ace': dict(method='er_ace'),
    'der_pp': dict(method='der_pp'),
    'cls_er': dict(method='cls_er'),
    'mkd': dict(method='mkd'),
    'lwf': dict(method='lwf'),
    'si': dict(method='si'),
    'ewc': dict(method='ewc'),
    'nested ewc': dict(LEVELS, method='ewc', use_nested_learning=True),
    'clipped': dict(NESTED, gradient_clip=0.5),
    'clipped later': dict(NESTED, knobs=[dict(step=17, name='gradient_clip', value=0.5)]),
    'faster later': dict(NESTED, knobs=[dict(step=17, name='periods', value=[1, 1, 2])]),
    'reject': dict(method='er', ood_ratio=0.2, ood_policy='reject'),
    'small batches': dict(method='er', batch_size=2, replay_batch_size=1),
    'nearest mean': dict(method='er', readout='nearest_mean'),
    'adamw': dict(NESTED, inner='AdamW', learning_rate=1e-4),
    'm3': dict(NESTED, inner='nested_learning.optim.deep:M3', learning_rate=1e-4),
    'bfloat16': dict(method='er', use_amp=True, amp_dtype='bfloat16'),
    'float16': dict(NESTED, use_amp=True, amp_dtype='float16'),
}


def use_doubles(learner):
    "Compute in 64 bits, so that rounding does not hide a difference, and training does not amplify it."
    for network in (learner.model, *(learner.averages.averages if learner.averages else ())):
        network.double()
        first = next(m for m in network.modules() if next(m.parameters(recurse=False), None) is not None)
        first.register_forward_pre_hook(lambda module, inputs: inputs[0].double())


def train(keys, steps=30):
    "Losses, read-outs and weights after some steps; the last two are those of the first process."
    with warnings.catch_warnings(), use_threads(1):
        warnings.simplefilter('ignore')
        learner = build(load_config(**{**DIGITS, **keys}))
        if 'amp_dtype' not in keys:
            use_doubles(learner)
        losses = []
        for event in learner.run():
            if isinstance(event, StepDone):
                losses.append(event.loss)
            if len(losses) == steps:
                break
        learner.settle()
        tested = [{**row} for row in learner.evaluate(0).accuracies]
        gathered = learner._gathered() or [torch.zeros(1)]
        weights = list(learner.model.state_dict().values())
        return losses, tested, [x.double().numpy().copy() for x in [*weights, *gathered]]


@pytest.mark.parametrize('name', CASES)
def test_methods(name, tmp_path):
    "Three processes: the losses, weights and gathered gradients of one."
    half = name in ('bfloat16', 'float16')
    loose = 2e-3 if half else 1e-7
    losses, tested, weights = train(CASES[name])
    codes, results = in_processes(3, train, CASES[name], folder=tmp_path / 'three')
    assert codes == [0, 0, 0]
    np.testing.assert_allclose(results[0][0], losses, atol=10 * loose)
    assert str(results[0][1]) == str(tested) or half
    for mine, theirs in zip(weights, results[0][2]):
        np.testing.assert_allclose(theirs, mine, atol=loose)
    assert results[0][0] == results[1][0] == results[2][0]


def count_sums(keys):
    "How many numbers of each level's weights are summed over the processes, and how often the level moves."
    learner = build(load_config(**{**DIGITS, **keys}))
    sizes = {g['name']: sum(p.numel() for p in g['params']) for g in learner.optimizer.param_groups}
    summed, moved = [], []
    learner.optimizer.combine = lambda tensors: summed.append(sum(t.numel() for t in tensors))
    for event in learner.run():
        if isinstance(event, StepDone):
            moved += event.moved
            if event.step == 21:
                return sizes, sorted(summed), moved


def test_slow_levels_are_summed_once_per_move(tmp_path):
    (sizes, summed, moved), _ = in_processes(2, count_sums, NESTED, folder=tmp_path / 'two')[1]
    expected = [sizes['medium']] * moved.count('medium') + [sizes['slow']] * moved.count('slow')
    assert moved.count('medium') == 7 and moved.count('slow') == 3
    assert summed == sorted(expected)


def lose_one(keys):
    "Train with a gradient that is not finite in the share of one process at step 5."
    gather = NestedOptimizer.waiting

    def spoil(optimizer):
        waiting = gather(optimizer)
        if learner.steps == 5 and current_ranks().rank == 1:
            waiting[0].grad.fill_(torch.nan)
        return waiting

    NestedOptimizer.waiting = spoil
    learner = build(load_config(**{**DIGITS, **keys}))
    for event in learner.run():
        if isinstance(event, StepDone) and event.step == 12:
            finite = all(p.isfinite().all().item() for p in learner.model.parameters())
            return learner.skipped, finite, learner.optimizer.pending()


def test_step_that_one_process_cannot_use_is_skipped_by_all(tmp_path):
    keys = dict(NESTED, on_nonfinite='skip')
    first, second = in_processes(2, lose_one, keys, folder=tmp_path / 'two')[1]
    assert first == second == (1, True, dict(fast=0, medium=2, slow=4))


ENV = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(Path(__file__).parent.parent))


def torchrun(size, *words, cwd):
    "Start `torchrun -m nested_learning`."
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(size)]
    return subprocess.Popen(
        [*command, '-m', 'nested_learning', *words],
        cwd=cwd,
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for_checkpoint(started, folder):
    while started.poll() is None and not list(folder.glob('checkpoint-*.pt')):
        time.sleep(0.1)


def test_torchrun(tmp_path):
    "A run that is told to stop writes a checkpoint, from which one process goes on."
    keys = dict(DIGITS, method='er', memory_size=50, updates_per_batch=5)
    config = load_config(**keys, run_dir=str(tmp_path / 'run'))
    config.to_yaml(tmp_path / 'config.yaml')
    started = torchrun(2, 'config.yaml', cwd=tmp_path)
    wait_for_checkpoint(started, tmp_path / 'run')
    started.send_signal(signal.SIGTERM)
    said = started.communicate()[0]
    assert said.count('stopped by SIGTERM after step') == 1, said
    assert Run(tmp_path / 'run').info['status'] == 'stopped'
    one = make_alone(tmp_path / 'one', keys)
    assert_same_run(one, run_or_resume(config, progress=False))


def test_torchrun_refuses_with_one_message(tmp_path):
    config = load_config(**DIGITS | dict(network='slim_resnet18', method='er'), run_dir='run')
    config.to_yaml(tmp_path / 'config.yaml')
    done = torchrun(2, 'config.yaml', cwd=tmp_path)
    said = done.communicate()[0]
    assert done.returncode == 1 and said.count('Error: network: BatchNorm2d') == 1, said
    assert 'norm: group' in said and not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_torchrun_that_loses_a_process_says_so_once(rank, tmp_path):
    keys = dict(DIGITS, method='er', memory_size=50, updates_per_batch=20, checkpoint_every=10)
    load_config(**keys, run_dir='run').to_yaml(tmp_path / 'config.yaml')
    started = torchrun(3, 'config.yaml', cwd=tmp_path)
    wait_for_checkpoint(started, tmp_path / 'run')
    os.kill(process_of(started.pid, rank), signal.SIGKILL)
    said = started.communicate()[0]
    assert started.returncode == 1 and said.count('failed: ') == 1, said
    assert said.count('the same command goes on from the newest checkpoint') == 1
    done = torchrun(2, 'config.yaml', cwd=tmp_path)
    assert 'finished: run' in done.communicate()[0]


def process_of(launcher, rank):
    "The process of a rank."
    for path in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            parent = (path / 'stat').read_text().rpartition(')')[2].split()[1]
            if parent == str(launcher) and f'\0RANK={rank}\0' in (path / 'environ').read_text():
                return int(path.name)
    raise AssertionError(f'no process of rank {rank}')
