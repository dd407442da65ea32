"What notebooks cannot check about themselves: export, cleanliness, imports, examples, sizes and layout."

import ast
import importlib
import inspect
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import yaml
from conftest import ROOT

import nested_learning
from nested_learning.config.load import load_config, parameters_cell
from nested_learning.data import kaggle
from nested_learning.runs.grid import plan_runs, read_grid

TOP = {'nbs', 'nested_learning', 'tests', 'settings.ini', 'setup.py', 'README.md', '_quarto.yml'}
TOP |= {'LICENSE', 'CHANGELOG.md', 'CONTRIBUTING.md', 'CITATION.cff'}


def none(problems, advice=''):
    assert not problems, '\n'.join(['', advice, *map(str, problems)])


def run_nbdev(command, clone):
    subprocess.run([Path(sys.executable).with_name(command)], cwd=clone, check=True, capture_output=True)


def source_of(module):
    return (ROOT / f'nested_learning/{module.replace(".", "/")}.py').read_text(encoding='utf-8')


def contents(folder, pattern):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob(pattern)}


def test_export_in_sync(clone):
    before = contents(clone / 'nested_learning', '**/*.py')
    for path in clone.glob('nested_learning/*/**/*.py'):
        path.unlink()
    run_nbdev('nbdev_export', clone)
    after = contents(clone / 'nested_learning', '**/*.py')
    assert {'__init__.py', '_modidx.py'} <= set(after)
    none(
        sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)),
        'run nbdev_export',
    )


def test_notebooks_clean(clone):
    before = contents(clone / 'nbs', '**/*.ipynb')
    run_nbdev('nbdev_clean', clone)
    after = contents(clone / 'nbs', '**/*.ipynb')
    none([name for name in before if before[name] != after[name]], 'run nbdev_clean')


def test_top_level(files):
    none(
        {name.parts[0] for name in files if not name.parts[0].startswith('.')} - TOP,
        'not allowed at the top level',
    )
    assert (ROOT / 'nbs/_quarto.yml').resolve() == ROOT / '_quarto.yml'


def test_sizes(notebooks):
    sizes = {path: (ROOT / 'nbs' / path).stat().st_size for path in notebooks}
    none(
        [f'{path}: {size} bytes' for path, size in sizes.items() if size > 300_000],
        'thin out the saved outputs',
    )


def test_style():
    "One style for notebooks and tests: .ruff.toml."
    ruff = Path(sys.executable).with_name('ruff')
    for command in (['check'], ['format', '--check']):
        done = subprocess.run([ruff, *command, '.'], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_functions_are_short_enough_to_read(modules):
    "No function of about thirty lines of body, no assignment to more than three names at once."
    wrong = []
    for name in modules.values():
        for node in ast.walk(ast.parse(source_of(name))):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                if node.end_lineno - first.lineno >= 32:
                    wrong.append(f'{name}.{node.name}: {node.end_lineno - first.lineno + 1} lines of body')
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                if len(node.targets[0].elts) > 3:
                    wrong.append(
                        f'{name}, line {node.lineno}: assigns {len(node.targets[0].elts)} names at once'
                    )
    none(wrong, 'give a step a name of its own')


def test_public_names():
    "The names of `import nested_learning as nl` stay fixed, and importing it is light."
    names = (
        'run resume fork load_config Config make_stream StreamConfig Stream load_dataset Dataset '
        'NestedLearningNetwork PlainNetwork CMSBlock assign_levels NestedOptimizer Consolidation Memory '
        'Method ER Learner Run Store load_model predict Cockpit metrics plots'
    ).split()
    code = 'import sys, nested_learning as nl\nassert not {"torch", "pandas"} & {*sys.modules}\n'
    code += 'print(*nl.__all__)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == names, done.stdout + done.stderr
    none([name for name in names if not hasattr(nested_learning, name)])


def test_title_cells(notebooks):
    "The docs turn the cell of the title into the page's header and drop everything else in it."
    titles = {path: next(cell.source for cell in cells if not cell.code) for path, cells in notebooks.items()}
    none(
        [path for path, title in titles.items() if not re.fullmatch(r'# [^\n]+\n\n> [^\n]+', title.strip())],
        'the first Markdown cell must be "# Title", an empty line, "> promise", and nothing else',
    )


def sidebar_pages(contents):
    "The paths and patterns of a list of the sidebar, in order."
    for entry in [contents] if isinstance(contents, str) else contents:
        if isinstance(entry, str):
            yield entry
        else:
            yield from sidebar_pages(entry.get('contents', []))


def test_sidebar_holds_each_page_once(notebooks):
    sections = yaml.safe_load((ROOT / '_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']
    patterns = list(sidebar_pages(sections['contents']))
    found = {path: sum(fnmatch(path, pattern) for pattern in patterns) for path in notebooks}
    none([f'{path}: {n} times' for path, n in found.items() if n != 1], 'mend the sidebar in _quarto.yml')
    none([pattern for pattern in patterns if not any(fnmatch(path, pattern) for path in notebooks)])


def test_tutorials_lead_on(notebooks):
    "Each tutorial says what it takes, and ends with a link to the next one in the sidebar."
    sections = yaml.safe_load((ROOT / '_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']
    order = [path for path in sidebar_pages(sections['contents']) if path.startswith('tutorials/')]
    texts = {path: [cell.source for cell in notebooks[path] if not cell.code] for path in order}
    none([path for path in order if not re.match(r'\*Takes [^*]+\*\n', texts[path][1])], 'time and needs')
    for path, following in zip(order, order[1:]):
        links = re.findall(r'\*\*Next:\*\* \[[^]]+\]\(([^)]+)\)', '\n'.join(texts[path]))
        assert links == [following.removeprefix('tutorials/')], f'{path} leads to {links}'
    assert '**Next:**' in '\n'.join(texts[order[-1]])


def test_no_star_imports(notebooks):
    stars = [
        path
        for path, cells in notebooks.items()
        for cell in cells
        if cell.exported
        for node in ast.walk(cell.tree)
        if isinstance(node, ast.ImportFrom) and node.names[0].name == '*'
    ]
    none(stars, 'exports a star import')


def test_imports_have_cells_of_their_own(notebooks, modules):
    "The docs run every cell with an import, so other code beside it would run too."
    imports = (ast.Import, ast.ImportFrom)
    mixed = []
    for path in modules:
        for cell in notebooks[path]:
            top = [isinstance(node, imports) for node in cell.tree.body]
            inside = not cell.exported and any(isinstance(node, imports) for node in ast.walk(cell.tree))
            if (any(top) or inside) and not all(top):
                mixed.append(f'{path}: {cell.source[:60]}')
    none(mixed, 'imports and other code in one cell')


def imported(name, tree):
    "Modules of this package that some code imports, at any depth."
    package = ['nested_learning', *name.split('.')[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = '.'.join([*start, *filter(None, [node.module])])
            found = [base, *(f'{base}.{alias.name}' for alias in node.names)]
        else:
            continue
        yield from (
            full.removeprefix('nested_learning.') for full in found if full.startswith('nested_learning.')
        )


def test_imports_run_one_way(modules):
    """A module imports only modules whose notebooks have a lower number; then there is no cycle, and
    packages follow their decades."""
    names = list(modules.values())
    trees = {name: ast.parse(source_of(name)) for name in names}
    wrong = [
        f'{name} imports {other}'
        for i, name in enumerate(names)
        for other in imported(name, trees[name])
        if other in names and other not in names[:i]
    ]
    none(wrong, 'imports must run from higher to lower numbers')
    light = {'core', 'measure.metrics', 'measure.statistics'}
    assert set(imported('dev.results', trees['dev.results'])) & set(names) <= light
    assert set(imported('dev.docs', trees['dev.docs'])) & set(names) <= light | {'dev.results'}


def test_packages_follow_decades(modules):
    "Each number is given once; a decade is a package; 900 to 989 are `see`, 990 is `dev`."
    numbers = [path.partition('_')[0] for path in modules]
    none(sorted(number for number in numbers if numbers.count(number) > 1), 'given to several notebooks')
    packages = {}
    for number, name in zip(numbers, modules.values()):
        package, dot, _ = name.partition('.')
        if dot:
            decade = number[:2] if number.startswith('99') else number[0]
            packages.setdefault(decade, set()).add(package)
    none([f'{decade}: {found}' for decade, found in packages.items() if len(found) > 1])


def asserts(tree):
    return any(
        isinstance(node, ast.Assert)
        or isinstance(node, ast.Call)
        and getattr(node.func, 'id', '').startswith('test_')
        for node in ast.walk(tree)
    )


def test_every_export_has_an_example(notebooks, modules):
    "Each exported function and class is used in a cell of its notebook that asserts something."
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    untested = []
    for path in modules:
        public = [
            node.name
            for cell in notebooks[path]
            if cell.exported
            for node in cell.tree.body
            if isinstance(node, defined) and node.name[0] != '_'
        ]
        shown = {
            getattr(node, 'id', None) or getattr(node, 'attr', None)
            for cell in notebooks[path]
            if not cell.exported and asserts(cell.tree)
            for node in ast.walk(cell.tree)
        }
        untested += [f'{path}: {name}' for name in public if name not in shown]
    none(untested, 'used in no cell that asserts')


def fences(cells):
    "The Python in the Markdown cells of a notebook."
    for cell in cells:
        if not cell.code:
            yield from re.findall(r'```python\n(.*?)```', cell.source, flags=re.DOTALL)


def fits(make, call):
    "Does a call fit the signature of a function or class?"
    starred = any(isinstance(x, ast.Starred) for x in call.args) or any(k.arg is None for k in call.keywords)
    named = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    try:
        signature = inspect.signature(make)
        (signature.bind_partial if starred else signature.bind)(*call.args, **named)
    except TypeError:
        return False
    return True


def test_fences_call_what_exists(notebooks, modules):
    "An example in prose parses, and its calls fit the functions and classes of the library."
    places = {path: importlib.import_module(f'nested_learning.{name}') for path, name in modules.items()}
    known = {}  # name -> what the modules export under it
    for module in places.values():
        for name in getattr(module, '__all__', ()):
            known.setdefault(name, []).append(getattr(module, name))
    wrong, calls = [], 0
    for path, cells in notebooks.items():
        for text in fences(cells):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and getattr(node.func, 'id', None) in known:
                    calls += 1
                    if not any(fits(make, node) for make in known[node.func.id] if callable(make)):
                        wrong.append(f'{path}: {ast.unparse(node)}')
    none(wrong, 'the examples in the text do not fit the signatures')
    assert calls > 80


def test_parameters(notebooks):
    """Each papermill notebook has one cell of parameters, each on a line with its type, its default and a
    comment."""
    runs = {path: cells for path, cells in notebooks.items() if path.startswith('runs/')}
    assert runs
    for path, cells in runs.items():
        tagged = [cell for cell in cells if 'parameters' in cell.tags]
        assert len(tagged) == 1, f'{path}: {len(tagged)} cells are tagged parameters'
        for node in tagged[0].tree.body:
            line = tagged[0].source.splitlines()[node.lineno - 1]
            assert (
                isinstance(node, ast.AnnAssign) and node.value is not None and node.lineno == node.end_lineno
            ), f'{path}: {line!r} must read name: type = default'
            assert line.encode()[node.end_col_offset :].strip().startswith(b'#'), (
                f'{path}: {line!r} lacks its comment'
            )


def test_configurations():
    "Each configuration loads as it is, and keeps what its name says."
    loaded = {path.stem: load_config(path) for path in (ROOT / 'nbs/runs/configs').glob('*.yaml')}
    assert {'digits', 'cifar100', 'original'} <= set(loaded)
    digits, cifar, original = (loaded[name] for name in ('digits', 'cifar100', 'original'))
    assert (
        digits.data.num_tasks,
        digits.data.image_size,
        digits.model.periods,
        digits.continual_learning.memory_size,
    ) == (5, (16, 16), (1, 5, 20), 50)
    assert (
        cifar.data.dataset_name,
        cifar.data.num_tasks,
        cifar.data.classes_per_task,
        cifar.data.batch_size,
    ) == ('CIFAR100', 10, 10, 10)
    assert (original.data.batch_size, original.training.optimizer, original.evaluation.save_best_model) == (
        128,
        'NestedOptimizer',
        True,
    )


def test_studies_and_grids():
    "Each variant of a study, and each grid, is a configuration of keys that count."
    for path in (ROOT / 'nbs/runs/studies').glob('*.yaml'):
        study = yaml.safe_load(path.read_text(encoding='utf-8'))
        for part in study.get('parts', {'all': study}).values():
            for name, variant in part['variants'].items():
                own = {'method': name, **part.get('keys', {}), **variant}
                own |= dict(dataset_name='ImageFolder', data_dir='images')
                if own.get('memory_size') == 'bytes':
                    own['memory_size'] = 400
                assert own.pop('seeds', 1) > 0
                assert load_config(study['base'], **own).data.data_dir == 'images'
    for path in (ROOT / 'nbs/runs/grids').glob('*.yaml'):
        assert plan_runs(read_grid(path))


def test_parameters_list_every_key(notebooks):
    cell = next(cell for cell in notebooks['runs/one_run.ipynb'] if 'parameters' in cell.tags)
    assert cell.source.splitlines()[1:] == parameters_cell().splitlines()[1:], (
        'copy nested_learning.config.load.parameters_cell() into nbs/runs/one_run.ipynb'
    )


def test_oldest_client_of_kaggle():
    "The module refuses what the package does not ask for."
    declared = (ROOT / 'settings.ini').read_text(encoding='utf-8')
    assert f'kaggle>={kaggle._OLDEST}\n' in declared


def test_no_path_of_a_machine(files):
    path = re.compile(
        r'(?<![\w.~$}])/(?:home|root|Users|work|tmp|opt|mnt|srv|var/folders)/\w|[A-Z]:\\\\?Users'
    )
    text = {
        name: (ROOT / name).read_text(encoding='utf-8')
        for name in files
        if name.suffix not in ('.png', '.gif') and not (ROOT / name).is_symlink()
    }
    none(
        [
            f'{name}: {content[max(0, found.start() - 30) : found.end() + 30]!r}'
            for name, content in text.items()
            if (found := path.search(content))
        ]
    )
