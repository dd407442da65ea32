"What the checks share: the files of the repository, its notebooks, and the options --slow and --screenshots."

import ast
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the slow checks as well')
    parser.addoption(
        '--screenshots',
        type=Path,
        metavar='DIR',
        help='write a picture of each page that the browser tests look at',
    )


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes minutes or installs packages; run with --slow')


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name == 'test_batch.py')  # last: the longest
    if config.getoption('--slow'):
        return
    slow = [item for item in items if item.get_closest_marker('slow')]
    items[:] = [item for item in items if item not in slow]
    config.hook.pytest_deselected(items=slow)


@pytest.fixture(scope='session')
def files(tmp_path_factory):
    """Paths of all files of the repository that git does not ignore, tracked or not, seen from its root;
    works in a copy without .git too."""
    empty = tmp_path_factory.mktemp('git')
    subprocess.run(['git', 'init', '-q', empty], check=True)
    listed = subprocess.run(
        [
            'git',
            '--git-dir',
            empty / '.git',
            '--work-tree',
            ROOT,
            'ls-files',
            '-o',
            '-z',
            '--exclude-standard',
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [Path(name) for name in sorted(listed.split('\0')) if name]


@pytest.fixture(scope='session')
def screenshots(request):
    "Folder for pictures of pages, or None."
    folder = request.config.getoption('--screenshots')
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def clone(files, tmp_path):
    "A copy of the repository as a fresh clone has it."
    for name in files:
        (tmp_path / 'clone' / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / 'clone' / name, follow_symlinks=False)
    return tmp_path / 'clone'


def read_cell(cell):
    "Split a cell: kind, source, tags, `#|` directives, and the syntax tree of a code cell."
    source = ''.join(cell['source'])
    code = cell['cell_type'] == 'code'
    directives = [line[2:].strip() for line in source.splitlines() if line.startswith('#|')] if code else []
    return SimpleNamespace(
        code=code,
        source=source,
        tags=cell['metadata'].get('tags', []),
        directives=directives,
        exported=any(d.split()[0] in ('export', 'exporti', 'exports') for d in directives if d),
        tree=ast.parse(source) if code and not source.startswith('%') else ast.parse(''),
    )


@pytest.fixture(scope='session')
def notebooks(files):
    "Path seen from nbs/ -> cells, of every notebook."
    paths = [name for name in files if name.parts[0] == 'nbs' and name.suffix == '.ipynb']
    return {
        path.relative_to('nbs').as_posix(): [
            read_cell(cell) for cell in json.loads((ROOT / path).read_text(encoding='utf-8'))['cells']
        ]
        for path in paths
    }


@pytest.fixture(scope='session')
def modules(notebooks):
    "Notebook -> name of the module it exports, in the order of the notebooks' numbers."
    names = {
        path: [d.split()[1] for cell in cells for d in cell.directives if d.startswith('default_exp')]
        for path, cells in notebooks.items()
    }
    return {path: name[0] for path, name in sorted(names.items()) if name}
