"""What a person brings gets the whole machinery: name and source in the folder, a hash of its own, exact
resume after SIGKILL in another process, batches, cockpit.

`python tests/test_own.py FOLDER` makes each kind of run, kills one like it and resumes that, each
in a process of its own, and says how it went."""

import importlib.util
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from kills import check_same, die, in_child
from PIL import Image
from torchvision.datasets import VisionDataset

from nested_learning.config.load import ConfigError, load_config
from nested_learning.runs.experiment import bring, resume, run, start
from nested_learning.runs.finished import Run, load_model
from nested_learning.runs.store import Store
from nested_learning.see.live import LiveRun
from nested_learning.train.build import load_data
from nested_learning.train.learner import StepDone

LOSSES = """
import torch.nn.functional as F

import nested_learning as nl


class Mine(nl.ER):
    "Replay with a running class prior in the loss."

    remembers = ('p',)

    def __init__(self, *lent, tau=1.0, **more):
        super().__init__(*lent, **more)
        self.tau = tau
        self.p = None

    def objective(self, batch, inputs, logits):
        now = F.one_hot(batch.labels, logits.shape[1]).float().mean(0)
        self.p = now if self.p is None else 0.9 * self.p + 0.1 * now
        return F.cross_entropy(logits + self.tau * self.p.clamp(min=1e-8).log(), batch.labels)
"""
NETWORKS = """
import timm


def make(input_channels, num_classes):
    "A ResNet of timm, narrow, without BatchNorm."
    return timm.create_model(
        'resnet10t',
        in_chans=input_channels,
        num_classes=num_classes,
        norm_layer='groupnorm',
        stem_type='',
        stem_width=64,
        channels=(32, 32, 64, 64),
    )
"""
SCORES = """
def worst_task(R):
    "The lowest accuracy of the last row."
    return R[-1].min()
"""
LINEAR = """
from torch import nn

from nested_learning.model.networks import Classifier


class Linear(Classifier):
    "One layer on the pixels; it has no `base_channels`."

    def __init__(self, input_channels, num_classes, *, image_size):
        super().__init__()
        self.head = nn.Linear(input_channels * image_size[0] * image_size[1], num_classes)

    def features(self, images):
        return images.flatten(1)


def normed(num_classes):
    "Two layers with BatchNorm between them."
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, num_classes))
"""
MODULES = dict(my_losses=LOSSES, my_networks=NETWORKS, my_scores=SCORES, my_linear=LINEAR)
BROKEN = dict(
    broken_import='import no_such_package\n\n\ndef thing():\n    return 1\n',
    broken_syntax='def thing(:\n    return 1\n',
    broken_name='thing = no_such_name\n',
)
SMALL = dict(
    network='mlp',
    base_channels=8,
    inner='SGD',
    learning_rate=0.1,
    memory_size=50,
    batch_size=50,
    method='er',
    checkpoint_every=7,
    device='cpu',
    threads=1,
)
DEEP = dict(
    network='my_networks:make',
    base_channels=None,
    method='nested_er',
    periods=[1, 2, 4],
    image_size=[16, 16],
)


def draw(changed=False):
    "Draw 600 pictures of 8 x 8 pixels in ten classes; perhaps with one pixel changed."
    random = np.random.default_rng(0)
    labels = np.arange(600) % 10
    images = random.integers(0, 100, (600, 8, 8)).astype(np.uint8)
    images[np.arange(600), labels // 2 + 1, labels % 2 + 3] = 255
    images[0, 0, 0] += changed
    return images, labels


class Pictures(VisionDataset):
    "The same pictures, as a data set of torchvision."

    classes = list('abcdefghij')

    def __init__(self, changed=False):
        super().__init__(root=None)
        self.pictures, self.labels = draw(changed)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Image.fromarray(self.pictures[index]), int(self.labels[index])


# kind -> key that names it, what is changed of `SMALL`, and a function that gives the objects of `run`
KINDS = {
    'method': ('method', dict(method='my_losses:Mine'), dict),
    'network': ('network', DEEP, dict),
    'arrays': ('dataset_name', dict(batch_size=20), lambda: dict(data=draw())),
    'torchvision': ('dataset_name', dict(batch_size=20), lambda: dict(data=Pictures())),
    'optimizer': ('inner', dict(inner='RAdam', learning_rate=0.01), dict),
    'metric': ('metrics', dict(metrics=['accuracy', 'my_scores:worst_task']), dict),
}
HAS_TIMM = importlib.util.find_spec('timm') is not None
needs_timm = pytest.mark.skipif(not HAS_TIMM, reason='timm is not installed')
ALL = [pytest.param(kind, marks=needs_timm) if kind == 'network' else kind for kind in KINDS]


def keys_of(kind, **more):
    return {key: value for key, value in {**SMALL, **KINDS[kind][1], **more}.items() if value is not None}


def kill_at(step):
    def kill(event):
        if isinstance(event, StepDone) and event.step == step:
            die()

    return kill


def go(kind, place, **how):
    warnings.simplefilter('ignore')
    objects = KINDS[kind][2]()
    return run(load_config(keys_of(kind, run_dir=str(place))), **objects, progress=False, **how)


def survives(kind, folder):
    "Run, run and kill, resume, compare; each in a process of its own."
    whole, place = folder / f'{kind}-whole', folder / f'{kind}-killed'
    assert in_child(lambda: go(kind, whole)) == 0
    ended = in_child(lambda: go(kind, place, listeners=[kill_at(17)]))
    if ended != -signal.SIGKILL or Run(place).info['status'] != 'running':
        return f'ended with {ended}'
    if in_child(lambda: resume(place, **KINDS[kind][2](), progress=False)):
        return 'killed, NOT resumed'
    same = in_child(lambda: check_same(place, whole)) == 0
    return 'killed, resumed to the same' if same else 'killed, resumed to something else'


def write_modules(folder):
    for name, text in {**MODULES, **BROKEN}.items():
        (folder / f'{name}.py').write_text(text.lstrip())
    sys.path.insert(0, str(folder))


def main(folder):
    write_modules(folder)
    kinds = [kind for kind in KINDS if kind != 'network' or HAS_TIMM]
    for kind in kinds:  # imports what the children would import one by one
        load_data(load_config(keys_of(kind)))
    for kind in kinds:
        print(f'{kind}: {survives(kind, folder)}', flush=True)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with modules of a person's own, where Python finds them."
    folder = tmp_path_factory.mktemp('own')
    write_modules(folder)
    yield folder
    sys.path.remove(str(folder))


def environment(place):
    return dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(ROOT), str(place)]))


@pytest.fixture(scope='module')
def said(place):
    "Kind -> how its runs went; they lie in `place`."
    words = [sys.executable, __file__, str(place)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(place))
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split(': ', 1) for line in done.stdout.splitlines() if ': ' in line)


@pytest.mark.parametrize('kind', ALL)
def test_killed_and_resumed(kind, said):
    assert said[kind] == 'killed, resumed to the same'


@pytest.mark.parametrize('kind', ALL)
def test_folder_names_it(kind, said, place):
    "The folder says what the run was made with, and holds its source; the store shows it."
    key, changes, objects = KINDS[kind]
    done = Run(place / f'{kind}-whole')
    values = {k: v for section in done.config.model_dump().values() for k, v in section.items()}
    name = values[key]
    sources = {path.name: path.read_text() for path in done.dir.glob('source-*.py')}
    if kind in ('arrays', 'torchvision'):
        assert name.startswith('arrays:') and sources == {'source-dataset_name.py': name}
        assert done.info['data']['num_classes'] == 10
    elif kind == 'optimizer':
        assert name == 'RAdam' and not sources
    else:
        assert name == tuple(changes[key]) if kind == 'metric' else name == changes[key]
        if kind == 'metric':
            assert list(sources) == ['source-metrics-my_scores.worst_task.py']  # a name for any system
        (source,) = sources.values()
        assert source in [text.lstrip() for text in MODULES.values()]
    row = Store(place).frame().set_index('run').loc[f'{kind}-whole']
    assert row['status'] == 'finished' and row['config_hash'] == done.info['config_hash']
    assert row['method'] == done.config.continual_learning.method


def hashes(place, kind, module, old, new):
    "Give the hash of a configuration before and after one line of a module is changed."
    path = place / f'{module}.py'
    text = path.read_text()
    assert text.count(old) == 1
    before = load_config(keys_of(kind)).hash
    path.write_text(text.replace(old, new))
    try:
        return before, load_config(keys_of(kind)).hash
    finally:
        path.write_text(text)


@pytest.mark.parametrize(
    'kind, module, old, new',
    [
        ('method', 'my_losses', '0.9 * self.p + 0.1 * now', '0.8 * self.p + 0.2 * now'),
        pytest.param('network', 'my_networks', '(32, 32, 64, 64)', '(32, 32, 64, 96)', marks=needs_timm),
        ('metric', 'my_scores', 'R[-1].min()', 'R[-1].max()'),
    ],
)
def test_a_line_changes_the_hash(place, said, kind, module, old, new):
    before, after = hashes(place, kind, module, old, new)
    assert len({before, after, load_config(**SMALL).hash}) == 3
    assert before == Run(place / f'{kind}-whole').info['config_hash'] == load_config(keys_of(kind)).hash


@pytest.mark.parametrize('make', [draw, Pictures])
def test_a_pixel_changes_the_hash(make):
    ours, same, other = (bring(SMALL, data=make(changed)) for changed in (False, False, True))
    assert ours.hash == same.hash
    assert len({ours.hash, other.hash, load_config(**SMALL).hash}) == 3


def test_an_optimizer_changes_the_hash():
    built_in, own = load_config(**SMALL), load_config(keys_of('optimizer', learning_rate=0.1))
    assert own.hash != built_in.hash
    assert bring(SMALL, optimizer=torch.optim.RAdam).hash == own.hash


def test_a_network_without_channels(place, tmp_path):
    keys = {**SMALL, 'network': 'my_linear:Linear', 'base_channels': None, 'run_dir': str(tmp_path / 'run')}
    done = run(load_config(keys), progress=False)
    assert done.config.model.base_channels is None
    assert type(load_model(done.dir)).__name__ == 'Linear'


@pytest.mark.filterwarnings('ignore:a level of period')
def test_levels_that_cannot_be_are_named(place):
    "BatchNorm in a level that waits is refused under the key of levels, not that of the optimizer."
    keys = keys_of('network', network='my_linear:normed', image_size=[8, 8])
    with pytest.raises(ConfigError, match='^model.network_options.levels = depth: 2 is a BatchNorm1d'):
        start(load_config(keys))


def test_a_changed_source_is_not_resumed(place, tmp_path):
    "A run stopped with one loss does not go on with another."

    def interrupt(event):
        if isinstance(event, StepDone) and event.step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go('method', tmp_path / 'half', listeners=[interrupt])
    path = place / 'my_losses.py'
    text = path.read_text()
    path.write_text(text.replace('tau=1.0', 'tau=0.5'))
    try:
        with pytest.raises(ConfigError, match='method: its source is not what this run was made with'):
            resume(tmp_path / 'half', progress=False)
    finally:
        path.write_text(text)
    assert resume(tmp_path / 'half', progress=False).info['status'] == 'finished'


@needs_timm
@pytest.mark.filterwarnings('ignore:a level of period')
def test_levels_by_depth(said, place):
    "The waiting levels of a network of timm wait, and the model comes back from its folder."
    done = Run(place / 'network-whole')
    moved = {name: done.steps['step'][done.steps['moved'].str.contains(name)] for name in ('fast', 'slow')}
    assert len(moved['fast']) == len(done.steps) and (moved['slow'] % 4 == 0).all() and len(moved['slow']) > 1
    assert type(load_model(done.dir)).__name__ == 'ResNet'
    with pytest.raises(ConfigError, match='BatchNorm'):
        start(load_config({**keys_of('network'), 'network': 'timm/test_resnet'}))


def test_method_in_the_cockpit(said, place, tmp_path):
    "Five steps, a pause and the rest: played by hand, it is the same run."
    config = load_config(keys_of('method', run_dir=str(tmp_path / 'played')))
    live = LiveRun(lambda: start(config))
    live.advance(5)
    live.wait(lambda: live.resting and live.step == 5, timeout=60)
    live.play()
    live.wait(lambda: live.ended, timeout=60)
    assert live.ended == 'finished', live.error
    assert Run(tmp_path / 'played').weights_hash == Run(place / 'method-whole').weights_hash


def nl_batch(place, folder, *options):
    "Run a grid with a method of one's own at the terminal."
    grid = dict(base=keys_of('method', method=None), grid=dict(method=['my_losses:Mine']), seeds=[0])
    (folder / 'grid.yaml').write_text(yaml.safe_dump(grid))
    code = 'from nested_learning.runs.commands import batch; batch()'
    words = [sys.executable, '-c', code, 'run', folder / 'grid.yaml', '--folder', folder / 'batch', *options]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(place), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '1 finished' in done.stdout
    (made,) = (path.parent for path in (folder / 'batch').glob('*/run.json'))
    return Run(made)


@pytest.mark.parametrize('engine', ['pool', pytest.param('ray', marks=pytest.mark.slow)])
def test_method_in_a_batch(engine, said, place, tmp_path):
    if engine == 'ray':
        pytest.importorskip('ray')
    done = nl_batch(place, tmp_path, '--engine', engine, '--workers', '1')
    alone = Run(place / 'method-whole')
    assert done.weights_hash == alone.weights_hash
    assert done.info['config_hash'] == alone.info['config_hash']
    assert (done.dir / 'source-method.py').read_text() == LOSSES.lstrip()


WRONG = [  # key, a name that leads nowhere, a word of what is said
    ('method', 'err', 'did you mean er'),
    ('method', 'my_losses:Mien', 'cannot be imported'),
    ('method', 'my_loses:Mine', 'cannot be imported'),
    ('method', 'broken_import:thing', 'no_such_package'),
    ('method', 'broken_syntax:thing', 'SyntaxError'),
    ('method', 'broken_name:thing', "NameError: name 'no_such_name'"),
    ('network', 'mpl', 'did you mean mlp'),
    ('network', 'my_scores:make', 'cannot be imported'),
    pytest.param('network', 'timm/resnet81', 'timm has no such network', marks=needs_timm),
    ('dataset_name', 'digit', 'did you mean digits'),
    ('dataset_name', 'my_scores:data', 'cannot be imported'),
    ('dataset_name', 'arrays:0123456789abcdef', 'give the object itself'),
    ('inner', 'RAdm', 'torch.optim'),
    ('metrics', ['accuracy', 'wurst'], 'module:object'),
    ('metrics', ['accuracy', 'my_scores:wurst'], 'cannot be imported'),
]


@pytest.mark.parametrize('key, name, word', WRONG)
def test_a_wrong_name_is_one_line(key, name, word, place):
    with pytest.raises(ConfigError) as caught:
        load_config(**{**SMALL, key: name})
    text = str(caught.value)
    assert '\n' not in text and f'.{key} = ' in text and word in text
    assert repr(name if isinstance(name, str) else name[-1]) in text


if __name__ == '__main__':
    main(Path(sys.argv[1]))
