"Every configuration key has an effect: each is changed in a small run, and what it is there for must differ."

import contextlib
import itertools
import warnings

import numpy as np
import pytest
from PIL import Image

from nested_learning.config.load import SECTIONS, ConfigError, load_config
from nested_learning.config.schema import Averages, DatasetOptions, NetworkOptions, StreamOptions
from nested_learning.runs.experiment import run
from nested_learning.train.build import build, load_data

SMALL = dict(
    network='mlp',
    base_channels=8,
    num_cms_levels=2,
    periods=[1, 5],
    inner='SGD',
    learning_rate=0.05,
    memory_size=50,
    batch_size=50,
    device='cpu',
    threads=1,
)
CNN = dict(network='nested_cnn', base_channels=4)
HELD = dict(holdout=0.2, eval_every=10)
FLAT = dict(use_nested_learning=False, periods=None)
AVERAGES = dict(method='nested_consolidated')
TWO = dict(AVERAGES, consolidation={'windows': [0.1, 0.5], 'periods': [1, 2]})
GROUPS = {
    'model.network_options': NetworkOptions,
    'data.dataset_options': DatasetOptions,
    'continual_learning.consolidation': Averages,
    'continual_learning.stream_options': StreamOptions,
}

# key -> what must differ, the new value, what else both runs need. Kinds: 'weights', 'stream', 'rows' (of any
# table), 'cost', 'files', 'summary', 'refused' (the data set disagrees), 'place' (where things are),
# 'split' (how images are held). Nothing but the first three may change weights.
EFFECTS = {
    'model.network': ('weights', 'slim_resnet18', dict(base_channels=4)),
    'model.use_nested_learning': ('weights', False, {}),
    'model.num_cms_levels': ('weights', 3, dict(periods=None)),
    'model.periods': ('weights', [1, 3], {}),
    'model.head_period': ('weights', 4, CNN),
    'model.base_channels': ('weights', 9, {}),
    'model.input_channels': ('refused', 3, {}),
    'model.num_classes': ('refused', 7, {}),
    'model.aggregate': ('weights', 'independent', CNN),
    'model.gradient_checkpointing': ('saved tensors', True, CNN),
    'model.network_options.norm': ('weights', 'group', CNN),
    'model.network_options.order': ('weights', 'slow_first', CNN),
    'model.network_options.reset': ('weights', 'initial', CNN),
    'model.network_options.levels': ('weights', 'reversed', {}),
    'data.dataset_name': (
        'stream',
        'ImageFolder',
        dict(base_channels=8, num_tasks=2, replay_batch_size=4, batch_size=4, memory_size=10),
    ),
    'data.data_dir': ('refused', 'nowhere', dict(dataset_name='ImageFolder', num_tasks=2)),
    'data.batch_size': ('weights', 40, {}),
    'data.num_workers': (
        'split',
        3,
        dict(dataset_name='ImageFolder', num_tasks=2, batch_size=4, dataset_options={'in_memory': False}),
    ),
    'data.prefetch_factor': (
        'split',
        5,
        dict(dataset_name='ImageFolder', num_tasks=2, batch_size=4, dataset_options={'in_memory': False}),
    ),
    'data.pin_memory': ('pinned', True, {}),
    'data.num_tasks': ('stream', 2, {}),
    'data.classes_per_task': ('stream', 1, dict(class_order=[3, 1, 4, 5, 9])),
    'data.image_size': ('weights', [16, 16], {}),
    'data.class_order': ('stream', [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], {}),
    'data.holdout': ('stream', 0.25, HELD),
    'data.dataset_options.in_memory': (
        'split',
        False,
        dict(dataset_name='ImageFolder', num_tasks=2, batch_size=4),
    ),
    'data.dataset_options.max_bad': (
        'refused',
        0.0,
        dict(dataset_name='ImageFolder', num_tasks=2, batch_size=4),
    ),
    'data.dataset_options.test_share': (
        'stream',
        0.4,
        dict(dataset_name='ImageFolder', num_tasks=2, batch_size=4, replay_batch_size=4, memory_size=10),
    ),
    'data.dataset_options.split_seed': (
        'weights',
        1,
        dict(dataset_name='ImageFolder', num_tasks=2, batch_size=4, replay_batch_size=4, memory_size=10),
    ),
    'data.augment': ('weights', 'none', {}),
    'training.learning_rate': ('weights', 0.04, {}),
    'training.level_lr': ('weights', [0.05, 0.01], {}),
    'training.reduction': ('weights', 'sum', {}),
    'training.weight_decay': ('weights', 0.1, {}),
    'training.optimizer': ('weights', 'SGD', {}),
    'training.inner': ('weights', 'AdamW', {}),
    'training.inner_options': ('weights', {'momentum': 0.5}, {}),
    'training.use_amp': ('weights', True, dict(amp_dtype=None)),
    'training.amp_dtype': ('weights', 'float16', dict(use_amp=True)),
    'training.gradient_clip': ('weights', 0.5, {}),
    'training.updates_per_batch': ('weights', 1.5, {}),
    'training.compile': ('compiled', True, {}),
    'training.on_nonfinite': ('survives', 'skip', dict(learning_rate=1e30)),
    'training.log_optimizer_stats_freq': ('rows', 3, {}),
    'continual_learning.method': ('weights', 'er_ace', {}),
    'continual_learning.method_options': (
        'weights',
        {'strength': 30.0},
        dict(method='ewc', **FLAT, memory_size=0),
    ),
    'continual_learning.memory_size': ('weights', '2.5kB', {}),
    'continual_learning.memory_policy': ('weights', 'window', {}),
    'continual_learning.replay_batch_size': ('weights', 7, {}),
    'continual_learning.consolidation': ('rows', {'windows': [0.2]}, {}),
    'continual_learning.consolidation.windows': ('averages', [0.3], AVERAGES),
    'continual_learning.consolidation.periods': ('averages', [3], AVERAGES),
    'continual_learning.consolidation.cascaded': ('averages', True, TWO),
    'continual_learning.consolidation.buffers': (
        'averages',
        'copy',
        dict(CNN, method='consolidated', **FLAT),
    ),
    'continual_learning.consolidation.readout': ('rows', 'mean', TWO),
    'continual_learning.readout': ('rows', 'nearest_mean', {}),
    'continual_learning.blur_ratio': ('stream', 0.2, {}),
    'continual_learning.other_task_ratio': ('stream', 0.1, {}),
    'continual_learning.ood_ratio': ('stream', 0.1, {}),
    'continual_learning.ood_policy': ('stream', 'reject', {}),
    'continual_learning.ood_kind': ('weights', 'uniform', {}),
    'continual_learning.strategy': ('stream', 'split', {}),
    'continual_learning.stream_options.disjoint_ratio': ('stream', 0.9, dict(strategy='i-blurry')),
    'continual_learning.stream_options.width': ('stream', 0.2, dict(strategy='gradual')),
    'continual_learning.stream_options.domains': (
        'stream',
        ['rotated', 'plain'],
        dict(strategy='domain', num_tasks=2),
    ),
    'continual_learning.stream_options.path': ('refused', 'nowhere.parquet', dict(strategy='table')),
    'continual_learning.realism': ('stream', 'hard', {}),
    'evaluation.metrics': ('summary', ['accuracy', 'backward_transfer'], {}),
    'evaluation.evaluate_old_tasks': ('rows', False, dict(metrics=['learning_accuracy'])),
    'evaluation.eval_every': ('rows', 5, HELD),
    'evaluation.save_best_model': ('files', True, HELD),
    'evaluation.model_save_path': ('elsewhere', 'best_model.pt', dict(HELD, save_best_model=True)),
    'run.seed': ('weights', 1, {}),
    'run.stream_seed': ('stream', 1, {}),
    'run.run_dir': ('place', 'other', {}),
    'run.device': ('refused', 'cuda:99', {}),
    'run.threads': ('threads', 2, {}),
    'run.checkpoint_every': ('files', 7, {}),
    'run.keep_checkpoints': ('files', 1, dict(checkpoint_every=7)),
    'run.knobs': ('weights', [dict(step=5, name='learning_rate', value=0.01)], {}),
}


def all_keys():
    "Section and name of every key; the keys of groups too."
    for section, cls in SECTIONS.items():
        for key in cls.model_fields:
            yield f'{section}.{key}'
            if f'{section}.{key}' in GROUPS:
                yield from (f'{section}.{key}.{name}' for name in GROUPS[f'{section}.{key}'].model_fields)


def test_every_key_is_listed():
    groups = {
        'model.network_options',
        'data.dataset_options',
        'continual_learning.stream_options',
    }  # by their keys
    assert set(all_keys()) - groups == set(EFFECTS), 'say in EFFECTS what a key is there for'


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Two folders of pictures, one file of them damaged."
    root = tmp_path_factory.mktemp('pictures')
    for c in range(2):
        (root / f'class{c}').mkdir()
        for i in range(20):
            Image.fromarray(np.random.default_rng(100 * c + i).integers(0, 255, (16, 16, 3), np.uint8)).save(
                root / f'class{c}/{i}.png'
            )
    return root


@pytest.fixture(scope='module')
def go(tmp_path_factory, pictures):
    "Run a configuration, perhaps with a change, once; the same one again is not run twice."
    done, root, numbers = {}, tmp_path_factory.mktemp('runs'), itertools.count()

    def once(change={}, **keys):
        name = str(sorted({**keys, **change}.items(), key=str))
        if name not in done:
            if 'ImageFolder' in (keys.get('dataset_name'), change.get('dataset_name')):
                keys.setdefault('data_dir', str(pictures))
            keys.setdefault('run_dir', str(root / f'run{next(numbers)}'))
            with quiet():
                done[name] = run(load_config(keys, **change), progress=False)
        return done[name]

    return once


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # small runs warn: levels hardly move, the memory holds the stream
        yield


def nested(key, value):
    "Write a key as an override: flat, or inside its group."
    section, name, *rest = key.split('.')
    return {name: {rest[0]: value}} if rest else {name: value}


def merged(others, change):
    "Complete the groups of a change by what else is needed in them."
    return {
        k: {**others[k], **v} if isinstance(v, dict) and isinstance(others.get(k), dict) else v
        for k, v in change.items()
    }


def files_of(run):
    return {path.name for path in run.dir.iterdir()}


PLAIN = [
    key
    for key, (effect, _, _) in EFFECTS.items()
    if effect in ('weights', 'stream', 'rows', 'files', 'summary', 'averages')
]


@pytest.mark.parametrize('key', PLAIN)
def test_effect(key, go, tmp_path, pictures):
    effect, value, needs = EFFECTS[key]
    others = {**SMALL, **needs}
    if key == 'training.use_amp':
        change = dict(use_amp=True, amp_dtype='bfloat16')
    elif key == 'data.classes_per_task':
        change, others['classes_per_task'], others['num_tasks'] = dict(classes_per_task=5, num_tasks=1), 1, 5
    elif key == 'continual_learning.realism':
        change = dict(realism='hard')
    elif key == 'data.num_tasks':
        change = dict(num_tasks=2)
    elif key == 'continual_learning.consolidation.periods':
        change = dict(consolidation={'windows': [0.1], 'periods': value})
    elif key == 'continual_learning.consolidation.buffers':
        change = dict(consolidation={'windows': [0.1], 'buffers': value})
    elif key == 'model.use_nested_learning':
        change = dict(use_nested_learning=False)
    else:
        change = nested(key, value)
    before, after = go(**others), go(merged(others, change), **others)
    same = before.weights_hash == after.weights_hash
    if effect in ('weights', 'averages'):
        assert not same
    elif effect == 'stream':
        assert before.info['stream_hash'] != after.info['stream_hash']
    elif effect == 'files':
        assert files_of(before) != files_of(after) and same
    elif effect == 'summary':
        assert list(before.summary().index) != list(after.summary().index) and same
    else:
        assert (
            not before.evaluations.equals(after.evaluations)
            or list(before.steps) != list(after.steps)
            or not before.steps.equals(after.steps)
        )
    if effect == 'averages':
        assert before.steps.loss.equals(after.steps.loss)  # the trained weights do not notice


@pytest.mark.parametrize('key', [key for key, (effect, _, _) in EFFECTS.items() if effect == 'refused'])
def test_refused(key, go, tmp_path, pictures):
    "A key that describes what must be there is checked against it."
    _, value, needs = EFFECTS[key]
    if key.endswith('max_bad'):
        bad = tmp_path / 'bad'
        for picture in pictures.rglob('*.png'):
            (bad / picture.parent.name).mkdir(parents=True, exist_ok=True)
            (bad / picture.parent.name / picture.name).write_bytes(picture.read_bytes())
        (bad / 'class0/0.png').write_bytes(b'no picture')
        allowed = load_config(**{**SMALL, **needs}, data_dir=str(bad), dataset_options={'max_bad': 0.5})
        assert load_data(allowed).skipped
        needs = dict(needs, data_dir=str(bad))
    with pytest.raises((ConfigError, ValueError)), quiet():
        others = {**SMALL, **needs}
        build(load_config(others, **merged(others, nested(key, value))))


def test_the_others(go, tmp_path, pictures, monkeypatch):
    "Keys that change how or where, and nothing of what comes out."
    plain = go(**SMALL)
    assert go(**SMALL, run_dir=str(tmp_path / 'other')).dir == tmp_path / 'other'
    assert go(**SMALL, run_dir=str(tmp_path / 'third')).weights_hash == plain.weights_hash
    assert go(**{**SMALL, 'threads': 2}).info['hardware']['threads'] == 2 != plain.info['hardware']['threads']
    go(**SMALL, **HELD, save_best_model=True, model_save_path=str(tmp_path / 'best_model.pt'))
    assert (tmp_path / 'best_model.pt').is_file()
    with pytest.raises(FloatingPointError):
        go(**{**SMALL, 'learning_rate': 1e30})
    assert go(**{**SMALL, 'learning_rate': 1e30}, on_nonfinite='skip').cost['skipped'] > 0

    def learner(**keys):
        with quiet():
            return build(load_config(SMALL, **keys))

    assert learner(**CNN, gradient_checkpointing=True).method.model.stages[0].layers[0].checkpointing
    assert (
        learner(compile=True).method.model._compiled_call_impl is not None
        and learner().method.model._compiled_call_impl is None
    )
    lazy = dict(dataset_name='ImageFolder', data_dir=str(pictures), num_tasks=2, batch_size=4)

    def split(**keys):
        config = load_config(**{**SMALL, **lazy, 'dataset_options': {'in_memory': False}, **keys})
        train = load_data(config).train
        return getattr(train, 'split', train)

    assert (
        (split(num_workers=3).num_workers, split(prefetch_factor=5).prefetch_factor)
        == (3, 5)
        != (split().num_workers, split().prefetch_factor)
    )
    assert type(split(dataset_options={'in_memory': True})) is not type(split())
    asked = []
    monkeypatch.setattr(
        'nested_learning.train.build.load_dataset',
        lambda *args, **options: (
            asked.append(options['pin_memory']) or (_ for _ in ()).throw(ValueError('enough'))
        ),
    )
    for pinned in (True, False):
        with pytest.raises(ConfigError):
            load_data(load_config(**SMALL, pin_memory=pinned))
    assert asked == [True, False]
