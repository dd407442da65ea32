"""Batches that are killed, interrupted, shared, short of disk, on a cluster, and installed without the
repository: what needs processes of its own."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT

from nested_learning.config.load import load_config
from nested_learning.runs.experiment import run
from nested_learning.runs.finished import Run
from nested_learning.runs.folder import is_held, lock_of
from nested_learning.runs.grid import open_batch, plan_runs, read_holder, read_state
from nested_learning.train.checkpoints import list_checkpoints

ENV = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
# as the installed command begins: without the current folder among those of modules
ENTRY = 'import sys; sys.path.remove(""); from nested_learning.runs.commands import batch; batch()'
NL_BATCH = [sys.executable, '-c', ENTRY]
SMALL = dict(
    method='er',
    network='mlp',
    base_channels=16,
    image_size=[16, 16],
    inner='SGD',
    learning_rate=0.05,
    updates_per_batch=8,
    memory_size=50,
    device='cpu',
    checkpoint_every=20,
)
DIGITS = dict(
    yaml.safe_load((ROOT / 'nbs/runs/configs/digits.yaml').read_text()),
    checkpoint_every=50,
)
FULL = dict(base=DIGITS, grid=dict(method=['fine_tune', 'er', 'der_pp', 'consolidated']), seeds=3)
FEW = dict(base=SMALL, grid=dict(method=['er', 'der_pp']), seeds=2)
# two runs of some ten seconds each, so that there is a time when both are in their middle
LONG = dict(FEW, base=dict(SMALL, updates_per_batch=64, checkpoint_every=200), seeds=1)


def start(*words, **options):
    return subprocess.Popen(
        [*NL_BATCH, *map(str, words)],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def end(process, code=0):
    said = process.communicate(timeout=1800)[0]
    assert process.returncode == code, said
    return said


def wait_for(condition, seconds=300):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, 'it never came to that'
        time.sleep(0.05)
    return found


def half_done(folder, runs):
    "Runs that are being trained, and have a checkpoint to go on from."
    return [
        run
        for run in runs
        if is_held(lock_of(folder / run.name)) and list((folder / run.name).glob('checkpoint-*.pt'))
    ]


def finished(folder, runs):
    return {r.name for r in runs if read_state(folder, r)['state'] == 'finished'}


def times(folder, name, word):
    return (folder / 'batch.log').read_text().count(f' {name}: {word}')


def check_same(folder, runs, others):
    "Compare with runs that were never disturbed, in everything but time and place."
    for planned in runs:
        ours, theirs = Run(folder / planned.name), others(planned)
        assert (ours.info['status'], ours.weights_hash, ours.info['stream_hash']) == (
            'finished',
            theirs.weights_hash,
            theirs.info['stream_hash'],
        )
        for kind in ('steps', 'evaluations'):
            pd.testing.assert_frame_equal(getattr(ours, kind), getattr(theirs, kind))


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "Runs made here, in this process, each when it is first asked for."
    place = tmp_path_factory.mktemp('alone')

    def make(planned):
        sections = planned.config.model_dump(mode='json')
        sections['run']['run_dir'] = str(place / planned.name)
        if (place / planned.name).exists():
            return Run(place / planned.name)
        return run(load_config(**sections), progress=False)

    return make


def write_grid(tmp_path, grid):
    (tmp_path / 'grid.yaml').write_text(yaml.safe_dump(grid))
    return tmp_path / 'grid.yaml', tmp_path / 'batch', plan_runs(grid)


def nobody_works(folder, runs):
    return not any(is_held(lock_of(folder / run.name, kind)) for run in runs for kind in ('lock', 'claim'))


def last_written(folder, names):
    "When the record and the `run.json` of some runs were written."
    paths = [path for name in names for path in (folder / f'{name}.ipynb', folder / name / 'run.json')]
    return {path: path.stat().st_mtime_ns for path in paths}


def kill_twice(tmp_path, grid):
    "Start a batch, kill it twice in the middle of runs, let it end; finished runs must not be touched again."
    path, folder, runs = write_grid(tmp_path, grid)
    before, struck, untold = set(), set(), set()
    unborn = {}  # run -> lines that it begins, of batches killed before it had written anything

    def due():
        "Runs to strike; the second time some must have finished."
        if struck and not finished(folder, runs):
            return []
        return [run.name for run in half_done(folder, runs) if run.name not in struck]

    for words in (('run', path, '--folder', folder), ('resume', folder)):
        process = start(*words, '--workers', 2)
        names = wait_for(due)
        process.kill()
        process.wait()
        wait_for(lambda: nobody_works(folder, runs), 30)  # no kernel trains on
        ended = finished(folder, runs) - before
        untold |= {name for name in ended if not times(folder, name, 'finished')}  # killed before that line
        before |= ended
        struck |= set(names) - before
        waiting = [run.name for run in runs if read_state(folder, run)['state'] == 'waiting']
        unborn |= {name: times(folder, name, 'begins') for name in waiting}
    records = last_written(folder, before)
    assert f'{len(runs)} finished' in end(start('resume', folder, '--workers', 2))
    assert finished(folder, runs) == {run.name for run in runs}
    assert records == last_written(folder, before)
    for planned in runs:
        assert times(folder, planned.name, 'begins') == 1 + unborn.get(planned.name, 0)
        assert times(folder, planned.name, 'finished') == (planned.name not in untold)
    logs = [(folder / name / 'log.txt').read_text() for name in struck]
    assert before and any('goes on from checkpoint' in text for text in logs)
    return folder, runs


def test_killed_twice(tmp_path, undisturbed):
    folder, runs = kill_twice(tmp_path, FEW)
    check_same(folder, runs, undisturbed)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The twelve runs of four methods and three seeds, made by a batch that nobody disturbed."
    path, folder, runs = write_grid(tmp_path_factory.mktemp('undisturbed'), FULL)
    assert '12 finished' in end(start('run', path, '--folder', folder, '--workers', 2))
    return lambda planned: Run(folder / planned.name)


@pytest.mark.slow
def test_full_grid_killed_twice(tmp_path, whole):
    folder, runs = kill_twice(tmp_path, FULL)
    check_same(folder, runs, whole)


def lose_a_node(tmp_path, grid):
    "Run a grid on two Ray nodes; lose one of them when it is in the middle of a run."
    pytest.importorskip('ray', reason='the extra ray is not installed')
    from ray.cluster_utils import Cluster

    path, folder, runs = write_grid(tmp_path, grid)
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
    try:
        node = cluster.add_node(num_cpus=1)
        process = start('run', path, '--folder', folder, '--engine', 'ray', '--address', cluster.address)
        wait_for(lambda: len(half_done(folder, runs)) == 2)  # one on each
        cluster.remove_node(node, allow_graceful=False)
        assert f'{len(runs)} finished' in end(process)
    finally:
        cluster.shutdown()
    resumed = [planned.name for planned in runs if times(folder, planned.name, 'goes on')]
    assert len(resumed) == 1
    assert 'goes on from checkpoint' in (folder / resumed[0] / 'log.txt').read_text()
    return folder, runs


def test_ray_loses_a_node(tmp_path, undisturbed):
    folder, runs = lose_a_node(tmp_path, LONG)
    check_same(folder, runs, undisturbed)


@pytest.mark.slow
def test_full_grid_on_ray(tmp_path, whole):
    folder, runs = lose_a_node(tmp_path, FULL)
    check_same(folder, runs, whole)


@pytest.mark.slow
@pytest.mark.parametrize('share, at_once', [(1, 1), (0.5, 2)])
def test_ray_shares_a_gpu(tmp_path, share, at_once):
    "The GPU is one in name only: what is asked is how many runs Ray lets onto it."
    pytest.importorskip('ray', reason='the extra ray is not installed')
    from ray.cluster_utils import Cluster

    path, folder, runs = write_grid(tmp_path, FEW)
    head = dict(num_cpus=4, num_gpus=1, include_dashboard=False)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    words = ('--engine', 'ray', '--address', cluster.address, '--gpus-per-run', share)
    try:
        assert '4 finished' in end(start('run', path, '--folder', folder, *words))
    finally:
        cluster.shutdown()
    going, most = 0, 0
    for line in (folder / 'batch.log').read_text().splitlines():
        going += line.endswith(': begins') - (': finished' in line)
        most = max(most, going)
    assert most == at_once


def test_ctrl_c_then_two_batches(tmp_path, undisturbed):
    """Each run stops after its present step, with a checkpoint and a record that says so; then two batches on
    one folder share what is left."""
    path, folder, runs = write_grid(tmp_path, {**FEW, 'seeds': 1})
    process = start('run', path, '--folder', folder, '--workers', 2)
    wait_for(lambda: half_done(folder, runs))
    process.send_signal(signal.SIGINT)
    assert 'goes on' in end(process, 130)
    states = {r.name: read_state(folder, r) for r in runs}
    assert {s['state'] for s in states.values()} <= {'stopped', 'finished'}
    stopped = [name for name, s in states.items() if s['state'] == 'stopped']
    assert any(
        Run(folder / name).info['status'] == 'stopped'
        and 'KeyboardInterrupt' in (folder / f'{name}.ipynb').read_text()
        for name in stopped
    )
    both = [start('resume', folder, '--workers', 1) for _ in range(2)]
    for process in both:
        assert '2 finished' in end(process)
    assert all(
        (times(folder, name, 'begins'), times(folder, name, 'goes on')) == (1, name in stopped)
        for name in states
    )
    check_same(folder, runs, undisturbed)


def test_kernel_killed(tmp_path, undisturbed):
    "A kernel that dies, as when memory runs out, stops its own run only; that run goes on later."
    path, folder, runs = write_grid(tmp_path, {**FEW, 'grid': dict(method=['er'])})
    process = start('run', path, '--folder', folder, '--workers', 2)
    struck = wait_for(lambda: half_done(folder, runs))[0].name
    os.kill(wait_for(lambda: read_holder(folder / struck)).process, signal.SIGKILL)
    end(process, 1)
    assert {r.name: read_state(folder, r)['state'] for r in runs} == {
        r.name: 'stopped' if r.name == struck else 'finished' for r in runs
    }
    assert '2 finished' in end(start('resume', folder))
    assert times(folder, struck, 'begins') == 1 and times(folder, struck, 'goes on') == 1
    check_same(folder, runs, undisturbed)


MINE = """from nested_learning.methods.method import ER


class Mine(ER):
    "Experience replay by another name."
"""
OWN_STUDY = """
from nested_learning.config.load import load_config
from nested_learning.runs.studies import run_all

if __name__ == '__main__':
    methods = ('er', 'my_methods:Mine')
    run_all({m: load_config('base.yaml', method=m, run_dir=m.replace(':', '_')) for m in methods}, workers=2)
"""


def write_own(tmp_path):
    "Write a module with a method, and a grid that names it."
    base = {**SMALL, 'updates_per_batch': 1}
    (tmp_path / 'my_methods.py').write_text(MINE)
    (tmp_path / 'base.yaml').write_text(yaml.safe_dump(base))
    grid = dict(base=base, grid=dict(method=['er', 'my_methods:Mine']))
    (tmp_path / 'grid.yaml').write_text(yaml.safe_dump(grid))


def check_own(folder):
    "The run of the module's method names it, keeps its source, and computes what it says."
    (er,), (mine,) = [[Run(place) for place in folder.glob(name)] for name in ('er*/', 'my_methods_Mine*/')]
    assert er.info['status'] == mine.info['status'] == 'finished'
    assert mine.config.continual_learning.method == 'my_methods:Mine'
    assert (mine.dir / 'source-method.py').read_text() == MINE
    assert not list(er.dir.glob('source-*'))
    assert mine.weights_hash == er.weights_hash


def test_own_module_in_the_current_folder(tmp_path):
    write_own(tmp_path)
    assert '2 finished' in end(start('run', 'grid.yaml', '--workers', 2, cwd=tmp_path))
    check_own(tmp_path / '_runs/grid')
    assert '2 finished' in end(start('status', '_runs/grid', cwd=tmp_path))


def test_own_module_in_a_study(tmp_path):
    write_own(tmp_path)
    (tmp_path / 'study.py').write_text(OWN_STUDY)
    done = subprocess.run([sys.executable, 'study.py'], env=ENV, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_own(tmp_path)


@pytest.mark.slow
def test_processes_on_ray(tmp_path):
    "A cluster on this machine has the cores that its runs take; a run too large for it is refused at once."
    pytest.importorskip('ray', reason='the extra ray is not installed')
    (tmp_path / 'grid.yaml').write_text(yaml.safe_dump(dict(base=SMALL, seeds=2)))
    words = ('run', 'grid.yaml', '--engine', 'ray', '--processes', 2, '--workers', 1)
    assert 'takes 2 cores' in end(start(*words, '--gpus-per-run', 9, cwd=tmp_path), code=2)
    assert '2 finished' in end(start(*words, cwd=tmp_path))
    runs = [Run(path.parent) for path in (tmp_path / '_runs/grid').glob('*/run.json')]
    assert [run.info['processes'] for run in runs] == [2, 2]


@pytest.mark.slow
def test_own_module_on_ray(tmp_path):
    pytest.importorskip('ray', reason='the extra ray is not installed')
    from ray.cluster_utils import Cluster

    write_own(tmp_path)
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, include_dashboard=False))
    try:
        words = ('--engine', 'ray', '--address', cluster.address)
        assert '2 finished' in end(start('run', 'grid.yaml', *words, cwd=tmp_path))
    finally:
        cluster.shutdown()
    check_own(tmp_path / '_runs/grid')


def test_disk_full(tmp_path, undisturbed):
    "Files larger than a limit cannot be written; what could not be finished goes on later."
    path, folder, runs = write_grid(
        tmp_path, dict(base={**SMALL, 'base_channels': 192, 'updates_per_batch': 1})
    )

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))

    end(start('run', path, '--folder', folder, preexec_fn=limit), 1)
    assert [read_state(folder, r)['state'] for r in runs] == ['stopped']
    end(start('resume', folder))
    check_same(folder, runs, undisturbed)


STUDY = """
import sys
from nested_learning.config.load import load_config
from nested_learning.runs.studies import run_all

if __name__ == '__main__':
    run_all({place: load_config(sys.argv[1], run_dir=place) for place in sys.argv[2:]}, workers=2)
"""


def test_study_interrupted(tmp_path):
    "Ctrl-C at a terminal reaches the whole group of processes; each run of a study stops with a checkpoint."
    (tmp_path / 'base.yaml').write_text(yaml.safe_dump(dict(SMALL, checkpoint_every=0)))
    (tmp_path / 'study.py').write_text(STUDY)
    places = [tmp_path / 'one', tmp_path / 'two']
    command = [sys.executable, tmp_path / 'study.py', tmp_path / 'base.yaml', *places]
    process = subprocess.Popen(command, env=ENV, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: all(read_holder(place) for place in places))
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=300)[1]
    assert process.returncode != 0 and 'KeyboardInterrupt' in said
    for place in places:
        last = Run(place).steps.step.iloc[-1]
        assert Run(place).info['status'] == 'stopped', said
        assert last in list_checkpoints(place), 'saved after its present step'


def papermill(*words):
    return subprocess.run(
        [sys.executable, '-m', 'papermill', *map(str, words)],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_one_run_by_hand(tmp_path):
    "The notebook works without nl-batch, and says what its parameters mean."
    notebook, place = ROOT / 'nbs/runs/one_run.ipynb', tmp_path / 'run'
    (tmp_path / 'config.yaml').write_text(
        yaml.safe_dump(
            dict(
                data=dict(image_size=[8, 8]),
                model=dict(network='mlp', base_channels=8),
                run=dict(run_dir=str(place), threads=1),
            )
        )
    )
    done = papermill(notebook, tmp_path / 'out.ipynb', '-f', tmp_path / 'config.yaml', '-p', 'seed', 3)
    assert done.returncode == 0, done.stderr
    assert (Run(place).info['status'], Run(place).config.run.seed, Run(place).config.data.image_size) == (
        'finished',
        3,
        (8, 8),
    )
    ended = Run(place).info['ended']
    refused = papermill(notebook, tmp_path / 'out.ipynb', '-f', tmp_path / 'config.yaml', '-p', 'seed', 4)
    assert (
        refused.returncode != 0
        and 'holds a run of another configuration' in refused.stderr
        and Run(place).info['ended'] == ended
    )
    said = ' '.join(papermill('--help-notebook', notebook).stdout.split())
    assert 'seed: int (default None) every random choice derives from it' in said.replace(
        'run: every', 'every'
    )
    assert 'memory_size: int or str' in said and 'images in the replay memory' in said


def test_report_shows_names_as_they_are(tmp_path):
    "Names of folders mean nothing in the HTML, Markdown and LaTeX of a report."
    evil = '<img src=x onerror=alert(1)> `|$x$ & 5%'
    for method in ('fine_tune', 'er'):
        for seed in range(2):
            keys = dict(SMALL, method=method, seed=seed, updates_per_batch=1, checkpoint_every=0, threads=1)
            if method == 'fine_tune':
                del keys['memory_size']
            run(load_config(**keys, run_dir=str(tmp_path / evil / f'{method}{seed} {evil}')), progress=False)
    (tmp_path / evil / 'half').mkdir()
    (tmp_path / evil / 'half/run.json').write_text(evil)
    (tmp_path / evil / f'er0 {evil}' / f'{evil}.txt').write_text('mine')
    words = ('-p', 'store', tmp_path, '-p', 'out', tmp_path / 'out')
    done = papermill(ROOT / 'nbs/runs/report.ipynb', tmp_path / 'report.ipynb', *words)
    assert done.returncode == 0, done.stderr
    shown = dict(html='', markdown='')
    for cell in json.loads((tmp_path / 'report.ipynb').read_text())['cells']:
        for output in cell.get('outputs', []):
            for kind in shown:
                shown[kind] += ''.join(output.get('data', {}).get(f'text/{kind}', ''))
    for kind, text in shown.items():
        assert 'onerror' in text and '<img' not in text, kind
    assert '`|$x$' not in shown['markdown']


def test_installed_without_the_repository(clone, tmp_path):
    "The wheel brings the notebook and the command."
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    subprocess.run(
        [*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', tmp_path / 'wheels', clone],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / 'wheels').glob('*.whl')
    subprocess.run(
        [*pip, 'install', '--no-deps', '--target', tmp_path / 'site', wheel], check=True, capture_output=True
    )
    (tmp_path / 'grid.yaml').write_text(yaml.safe_dump(dict(base={**SMALL, 'updates_per_batch': 1})))
    env = dict(ENV, PYTHONPATH=str(tmp_path / 'site'))
    where = subprocess.run(
        [sys.executable, '-c', 'from nested_learning.runs.engines import NOTEBOOK; print(NOTEBOOK)'],
        env=env,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert Path(where) == tmp_path / 'site/nested_learning/one_run.ipynb' and not Path(where).is_symlink()
    done = subprocess.run(
        [tmp_path / 'site/bin/nl-batch', 'run', 'grid.yaml'],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and '1 finished' in done.stdout, done.stdout + done.stderr
    folder = tmp_path / '_runs/grid'
    assert (
        json.loads((folder / f'{open_batch(folder)[0].name}.ipynb').read_text())['metadata']['papermill'][
            'exception'
        ]
        is None
    )


def test_wrong_grids_leave_nothing(tmp_path):
    path = tmp_path / 'grid.yaml'
    path.write_text('base: {trainig: {inner: SGD}}')
    said = end(start('run', path, '--folder', tmp_path / 'batch'), 2)
    assert 'trainig' in said and 'did you mean training?' in said and 'Traceback' not in said
    assert [p.name for p in tmp_path.iterdir()] == ['grid.yaml']
