"""Odd values for every key, through every reader: each is refused by a line, or it changes something.

The fast set gives every third case to one reader, in turn; with --slow, each case goes to all of them."""

import contextlib
import datetime
import itertools
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from nested_learning.config.load import SECTIONS, ConfigError, load_config, saved_config
from nested_learning.config.reader import parse_yaml
from nested_learning.config.schema import Averages, DatasetOptions, KnobSetting, NetworkOptions, StreamOptions
from nested_learning.runs.grid import Grid, check_entries, plan_runs, read_grid
from nested_learning.runs.search import Search, read_search
from nested_learning.runs.studies import check_parameters

GROUPS = {
    'model.network_options': NetworkOptions,
    'data.dataset_options': DatasetOptions,
    'continual_learning.consolidation': Averages,
    'continual_learning.stream_options': StreamOptions,
}
OPEN = ('training.inner_options', 'continual_learning.method_options', 'model.network_options')


def loop_of(make):
    "Make a list or dictionary that holds itself."
    if make is list:
        value = [1]
        value.append(value)
    else:
        value = {'a': 1}
        value['a'] = value
    return value


def deep(n):
    value = []
    for _ in range(n):
        value = [value]
    return value


class Odd:
    "An object that no key takes, and whose text is of several lines."

    def __repr__(self):
        return 'an odd\nobject'


VALUES = [
    *(None, True, False, 0, 1, 2, 3, -1, 0.5, 2.5, 1e-320, 1e308, math.nan, math.inf, -math.inf),
    *(10**18, 10**30, 10**400, -(10**400)),
    *(
        '',
        ' ',
        'yes',
        'true',
        'null',
        '1e-3',
        '.nan',
        '10',
        'x' * 10_000,
        'a\nb',
        'a\0b',
        '\0',
        'sch\u00f6n \u2603',
    ),
    *(
        '\ud800',
        '{method}',
        '{0.__class__}',
        '../..',
        '-',
        ':',
        'a:b',
        'os:system',
        '[1, 2',
        '&a [*a]',
        'timm/',
    ),
    *('${HOME}', '!!python/name:os.system', '1_000', '0x10', '9' * 5000),
    *(
        [],
        [[]],
        [1],
        [0, 0],
        [1, 2, 3],
        [1, 10, 100],
        [3, 2, 1],
        ['a'],
        [None],
        [True],
        [math.nan],
        [1, [2]],
        [10**400],
    ),
    *({}, {'a': 1}, {'': 1}, {1: 2}, {None: None}, {('a',): 1}, {'a': {'b': [1]}}),
    *(
        (),
        (1, 10, 100),
        {1, 2},
        b'bytes',
        Odd(),
        Odd,
        lambda: None,
        Path('a'),
        datetime.date(2026, 1, 1),
        1j,
        ...,
    ),
    *(np.float64(0.5), np.int64(3), np.array([1, 2]), np.float64(math.nan), range(3)),
    *(loop_of(list), loop_of(dict), deep(3000)),
]
TEXTS = [  # values as they are written in YAML
    *(
        '.nan',
        '.inf',
        '-.inf',
        '1e999',
        '1e-999',
        '0o17',
        '0x1F',
        '1_000',
        '+3',
        '1e3',
        '12:30:45',
        '2026-01-01',
        '~',
        'yes',
    ),
    *(
        '"a\\0b"',
        '"\\ud800"',
        '"a\\nb"',
        "''",
        '[]',
        '{}',
        '[[[]]]',
        '&a [*a]',
        '&a {b: *a}',
        '*nowhere',
        '!!binary aGk=',
    ),
    *(
        '!!python/object/apply:os.system [ls]',
        '!!set {a, b}',
        '!!float 3',
        '!!int x',
        '!own 3',
        '? [a]\n: b',
        '|\n  a\n  b',
    ),
    *(
        '{a: 1, a: 2}',
        '{1: 2}',
        '{null: 1}',
        '[1, 2',
        '{',
        '"',
        "'",
        '@a',
        '`a`',
        '%a',
        'a: b: c',
        '- a',
        '<<: 3',
    ),
    *('9' * 5000, '[' * 200, '[' * 100 + ']' * 100, '\u2603', '"\\x07"', '{<<: {seed: 3}}', '1 # note'),
]


def keys():
    "Sections and name of each key, and of each option of a group."
    for section, cls in SECTIONS.items():
        for key in cls.model_fields:
            name = f'{section}.{key}'
            yield name
            yield from (f'{name}.{option}' for option in GROUPS[name].model_fields) if name in GROUPS else ()
            if name in OPEN:
                yield f'{name}.strength'
    yield from (f'run.knobs.{name}' for name in KnobSetting.model_fields)
    yield from ('learning_rat', 'a.b', '', '\0', 'sources', 'given', 'idle', *SECTIONS)


def nest(key, value, flat):
    "Write a key and its value: flat, or in its section."
    section, *names = key.split('.')
    if section not in SECTIONS or not names:
        return {key: value}
    if names[0] == 'knobs' and len(names) > 1:
        knob = dict(step=5, name='learning_rate', value=0.01)
        value, names = [{**knob, names[1]: value}], names[:1]
    for name in reversed(names[1:]):
        value = {name: value}
    return {names[0]: value} if flat else {section: {names[0]: value}}


class Tried:
    "Count cases; note those that went wrong."

    def __init__(self):
        self.cases, self.accepted, self.wrong = 0, 0, []

    def __call__(self, what, read):
        "Read something: give what comes out, or None where it was refused as it should be."
        self.cases += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                found = read()
        except ConfigError as e:
            for line in str(e).split('\n'):
                if not line.strip() or len(line) > 2000 or not line.isprintable() and '\t' not in line:
                    self.wrong.append(f'{what}: refused by {line[:100]!r}')
            return None
        except BaseException as e:
            self.wrong.append(f'{what}: {type(e).__name__}: {str(e)[:200]}')
            return None
        self.accepted += 1
        return found

    def finish(self, capsys, name):
        with capsys.disabled():
            print(f' {name}: {self.cases} cases, {self.accepted} accepted ', end='')
        assert not self.wrong, '\n'.join(['', f'{len(self.wrong)} of {self.cases}:', *self.wrong])


def plain(config):
    return json.dumps(config.model_dump(mode='json'), sort_keys=True)


def at(config, key):
    value = config
    for name in key.split('.'):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    return value


def says_nothing(value):
    "Is a value null, or a group of nothing but null?"
    if isinstance(value, dict):
        return all(says_nothing(part) for part in value.values())
    return value is None or isinstance(value, str) and value in ('~', 'null', '{}')


def same(own, value):
    "Is a value the one that the default has?"
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = parse_yaml(value)
    own = own.model_dump() if hasattr(own, 'model_dump') else own
    if isinstance(own, tuple) and isinstance(value, (list, tuple)):
        return list(own) == list(value)
    with contextlib.suppress(ValueError, TypeError):
        return own == value or float(own) == float(value)
    return False


DEFAULT = load_config()


def check_effect(tried, what, key, value, config):
    "What was accepted says something, and can be written and read again."
    if config is None:
        return
    try:
        own = at(DEFAULT, key)
        if plain(config) == plain(DEFAULT) and not says_nothing(value) and not same(own, value):
            tried.wrong.append(f'{what}: accepted, and changes nothing (it stays {own!r})')
        assert len(config.hash) == 16 and parse_yaml(config.to_yaml())
    except Exception as e:
        tried.wrong.append(f'{what}: accepted, then {type(e).__name__}: {str(e)[:100]}')


def show(value):
    try:
        return repr(value)[:60]
    except RecursionError:
        return f'a deep {type(value).__name__}'


@pytest.fixture
def some(request):
    "Choose cases of many: every third of them, and one reader for each in turn; all with --slow."
    slow = request.config.getoption('--slow')

    def choose(cases, readers):
        for n, case in enumerate(cases):
            for number, reader in enumerate(readers):
                if slow or n % 3 == 0 and n // 3 % len(readers) == number:
                    yield (*case, reader)

    return choose


def test_values(some, capsys):
    tried = Tried()
    readers = (
        lambda key, value: load_config(nest(key, value, flat=True)),
        lambda key, value: load_config(nest(key, value, flat=False)),
        lambda key, value: load_config(**nest(key, value, flat=True)),
        lambda key, value: load_config(**nest(key, value, flat=False)),
    )
    for key, value, reader in some(itertools.product(keys(), VALUES), readers):
        what = f'{key} = {show(value)}'
        check_effect(tried, what, key, value, tried(what, lambda: reader(key, value)))
    tried.finish(capsys, 'values from Python')


def written(key, text, flat):
    "Write a key and its value as YAML."
    section, *names = key.split('.')
    if section not in SECTIONS or not names:
        return f'{key}: {text}'
    if len(names) > 1 and names[0] == 'knobs':
        knob = dict(step=5, name='learning_rate', value=0.01) | {names[1]: text}
        text = '[{' + ', '.join(f'{name}: {value}' for name, value in knob.items()) + '}]'
    elif len(names) > 1:
        text = f'{{{names[1]}: {text}}}'
    return f'{names[0]}: {text}' if flat else f'{section}: {{{names[0]}: {text}}}'


def test_files_and_parameters(some, capsys, tmp_path):
    tried, file = Tried(), tmp_path / 'a.yaml'

    def from_file(key, text, flat):
        file.write_bytes(written(key, text, flat).encode('utf-8', 'surrogatepass'))
        return load_config(file)

    def from_parameters(key, text, flat):
        nothing = dict.fromkeys(
            [*SECTIONS, *(name for cls in SECTIONS.values() for name in cls.model_fields)]
        )
        return load_config(None, **(nothing | nest(key, text, flat=True)))

    readers = ((from_file, True), (from_file, False), (from_parameters, True))
    for key, text, (reader, flat) in some(itertools.product(keys(), TEXTS), readers):
        what = f'{key} = {text[:60]!r} by {reader.__name__}'
        value = text
        if reader is from_file:
            with contextlib.suppress(ValueError):
                value = parse_yaml(text)
        check_effect(tried, what, key, value, tried(what, lambda: reader(key, text, flat)))
    for content in (
        b'',
        b'\xff\xfe',
        b'\0',
        b'\xef\xbb\xbfseed: 1',
        b'seed: 1\r\n',
        b'---\nseed: 1\n---\nseed: 2',
        b'\t',
    ):
        file.write_bytes(content)
        for reader in (load_config, saved_config, read_grid, read_search):
            tried(f'{reader.__name__} of {content!r}', lambda: reader(file))
    for place in ('', '\0', 'a\0b', tmp_path, tmp_path / 'none', 'x' * 10_000, 3, [], Odd(), b'a.yaml'):
        tried(f'the file {show(place)}', lambda: load_config(place))
    tried.finish(capsys, 'YAML and parameters')


WRAPS = (
    lambda value: value,
    lambda value: {'method': value},
    lambda value: {'learning_rate': [value]},
    lambda value: [value],
    lambda value: {'method': [value, 'er']},
)


def test_grids(capsys):
    tried = Tried()
    for entry, value, wrap in itertools.product((*Grid.model_fields, 'gird', '', 1), VALUES, WRAPS):
        grid = {'base': {'network': 'mlp'}, entry: wrap(value)}
        tried(f'{entry} = {show(wrap(value))}', lambda: plan_runs(grid))
    tried.finish(capsys, 'grids')


SEARCH = dict(reported=[0], tune_on=dict(first_tasks=2), keys=dict(learning_rate=[0.1, 0.2]))


def test_searches(capsys):
    tried = Tried()
    for entry, value, wrap in itertools.product((*Search.model_fields, 'kees', '', 1), VALUES, WRAPS[:4]):
        search = {**SEARCH, entry: wrap(value)}
        tried(f'{entry} = {show(wrap(value))}', lambda: check_entries(Search, search, 'search'))
    tried.finish(capsys, 'searches')


def test_studies(capsys):
    tried = Tried()
    for name, value in itertools.product(('seeds', 'seed', '', 'a\nb', '\0'), VALUES):
        tried(f'{name} = {show(value)}', lambda: check_parameters({name: value}, ('seeds',)))
    tried.finish(capsys, 'parameters of studies')
