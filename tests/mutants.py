"""Change the code of optim, cms and averages in one place at a time; its notebook must notice.

Run `python tests/mutants.py --out FOLDER`.

Not a part of CI: it takes 10 to 20 minutes on two cores, and needs `pip install mutmut==3.8.1`, from which
the changes come: another operator, number, string, argument and so on. Decorated functions and code outside
of functions, which mutmut leaves out, are changed too; docstrings are not.

The notebook's cells run as `nbdev_test` runs them, exported cells replaced by the module. A cell that fails,
or one that takes far longer than in the unchanged notebook, kills the mutant. To save time a mutant starts at
the first cell that reaches the changed function: the process that runs the unchanged notebook stops before
each cell and forks a child for each such mutant, which puts the changed code into the module's functions.
Cells that take seconds come last, since the others kill most mutants sooner.

Run it on a machine that does nothing else: a mutant to which a busy machine gives no time counts as killed.
Those that the clock ended, not their own use of the processor, are counted as `stuck`: these should be few.

FOLDER/mutants.json has the numbers and all survivors. `tests/mutants.yaml` lists survivors that are accepted,
each with a reason: mostly that the changed program does the same. Any other survivor, or fewer than 90%
killed in a module, is a failure. `--only FOLDER/mutants.json` runs the survivors of a former run alone,
`--match TEXT` those mutants that have TEXT in their description."""

import argparse
import ast
import difflib
import importlib
import inspect
import json
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # before torch is imported: a process with threads cannot fork
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import coverage
import hypothesis
import libcst as cst
import yaml
from mutmut.mutation.file_mutation import MutationVisitor, deep_replace
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

NOTEBOOKS = {'optim.nested': '40_nested', 'model.cms': '30_cms', 'optim.averages': '42_averages'}
ACCEPTED = Path(__file__).with_suffix('.yaml')
PROCESSES = 2
LONG = 3  # [s] cells that take longer come last


class Visitor(MutationVisitor):
    "Find mutants in decorated functions too, and none in docstrings, imports and `__all__`."

    def _skip_node_and_children(self, node):
        if (
            isinstance(node, (cst.Import, cst.ImportFrom))
            or isinstance(node, cst.Expr)
            and isinstance(node.value, cst.SimpleString)
        ):
            return True
        if isinstance(node, cst.Assign) and getattr(node.targets[0].target, 'value', '') == '__all__':
            return True
        return super()._skip_node_and_children(
            node.with_changes(decorators=[]) if isinstance(node, cst.FunctionDef) else node
        )


def functions(source):
    "Give (first line, last line, name) of each function at the top of a module, and of each method."
    for top in ast.parse(source).body:
        for node in top.body if isinstance(top, ast.ClassDef) else [top]:
            if isinstance(node, ast.FunctionDef):
                yield (
                    min(n.lineno for n in (node, *node.decorator_list)),
                    node.end_lineno,
                    node.name if node is top else f'{top.name}.{node.name}',
                )


def find_mutants(module, source):
    "Give all mutants of a module: `source`, `line`, the `function` around it, and what changed as `text`."
    wrapper, visitor = (
        cst.MetadataWrapper(cst.parse_module(source)),
        Visitor(mutation_operators, IgnoredCode(set(), set(), set())),
    )
    places, found, start = list(functions(source)), {}, 0
    with visitor.resolve(wrapper):
        for (
            statement
        ) in wrapper.module.body:  # one by one: to print the whole module for each mutant takes long
            visitor.mutations = []
            statement.visit(visitor)
            code = wrapper.module.code_for_node(statement)
            start = source.index(code, start)
            for mutation in visitor.mutations:
                changed = wrapper.module.code_for_node(
                    deep_replace(statement, mutation.original_node, mutation.mutated_node)
                )
                diff = list(difflib.unified_diff(code.splitlines(), changed.splitlines(), n=0, lineterm=''))[
                    2:
                ]
                if not diff:
                    continue
                line = source[:start].count('\n') + int(re.match(r'@@ -(\d+)', diff[0])[1])
                function = next((name for first, last, name in places if first <= line <= last), '')
                text = '\n'.join(
                    [
                        f'{module}.{function}',
                        *(line[0] + line[1:].strip() for line in diff if not line.startswith('@@')),
                    ]
                )
                if text in found:
                    text += (
                        f'\n({sum(t.startswith(text) for t in found) + 1})'  # the same words at another place
                    )
                found[text] = dict(
                    source=source[:start] + changed + source[start + len(code) :],
                    line=line,
                    function=function,
                    text=text,
                )
    return list(found.values())


def read_cells(module):
    "Give the code cells that nbdev_test runs: (source, exported?)."
    cells = json.loads((ROOT / f'nbs/{NOTEBOOKS[module]}.ipynb').read_text(encoding='utf-8'))['cells']
    sources = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    directives = [set(re.findall(r'^#\|\s*(\S+)', source, re.M)) for source in sources]
    return [
        (s, 'export' in d) for s, d in zip(sources, directives) if not d & {'notest', 'slow', 'cuda', 'eval:'}
    ]


def run_cell(cell, space, module):
    "Run one cell; an exported one only takes its names from the module."
    source, exported = cell
    code = compile(source, f'cell of {module.__name__}: {source[:60]}', 'exec')
    if exported:
        space.update({name: vars(module)[name] for name in code.co_names if name in vars(module)})
    else:
        exec(code, space)


def first_reached(module, cells, space):
    "Give line -> number of the first cell that reaches it, and the seconds of each unchanged cell."
    watch, seconds = coverage.Coverage(data_file=None, include=[module.__file__]), []
    watch.start()
    for number, cell in enumerate(cells):
        watch.switch_context(str(number))
        started = sum(os.times()[:4])  # of this process and those it has started
        run_cell(cell, space, module)
        seconds.append(sum(os.times()[:4]) - started)
    watch.stop()
    reached = watch.get_data().contexts_by_lineno(module.__file__)
    first = {line: min(int(number) for number in numbers if number) for line, numbers in reached.items()}
    return first, seconds


def plain_functions(names, home):
    "Give name -> function, without decorators, of functions and (as Class.method) methods of a module."
    found = {}
    for name, value in names.items():
        if inspect.isclass(value) and value.__module__ == home:
            found.update(
                {f'{name}.{key}': function for key, function in plain_functions(vars(value), home).items()}
            )
            continue
        parts = {name: value}
        if isinstance(value, property):
            parts = {name: value.fget, f'{name}.setter': value.fset}
        for part, function in parts.items():
            function = inspect.unwrap(function)
            if inspect.isfunction(function) and function.__module__ == home:
                found[part] = function
    return found


def change(module, mutant):
    "Put a mutant's code, constants and class attributes into the imported module."
    names = {'__name__': module.__name__}
    exec(compile(mutant['source'], module.__file__, 'exec'), names)
    new = plain_functions(names, module.__name__)
    for name, function in plain_functions(vars(module), module.__name__).items():
        if function.__code__.co_freevars != new[name].__code__.co_freevars:
            setattr(vars(module)[name.split('.')[0]], name.split('.')[1], new[name])
        else:
            function.__code__, function.__defaults__, function.__kwdefaults__ = (
                new[name].__code__,
                new[name].__defaults__,
                new[name].__kwdefaults__,
            )
    if mutant['function']:
        return
    for key, value in names.items():
        if inspect.isclass(value):
            for attribute, now in vars(value).items() if value.__module__ == module.__name__ else ():
                if attribute[:2] != '__' and not hasattr(now, '__get__'):
                    setattr(vars(module)[key], attribute, now)
        elif key[:2] != '__' and not hasattr(value, '__get__'):
            setattr(module, key, value)


def fork(task):
    "Run a task in a child without output; give its process id. It ends with 0 if the task does."
    child = os.fork()
    if child:
        return child
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        task()
        os._exit(0)
    except BaseException:
        os._exit(1)


def run_mutant(module, mutant, cells, space, seconds):
    "Run a mutant through the rest of the notebook, within limits of time."
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    signal.alarm(int(10 * seconds))
    change(module, mutant)
    for cell in cells:
        run_cell(cell, space, module)


def try_mutants(name, chosen):
    "Give the chosen mutants of a module, those of them that survive, and how many the clock ended."
    module = importlib.import_module(f'nested_learning.{name}')
    source, cells, space = (
        Path(module.__file__).read_text(encoding='utf-8'),
        read_cells(name),
        {'__name__': '__main__'},
    )
    reading, writing = os.pipe()
    fork(lambda: os.write(writing, json.dumps(first_reached(module, cells, space)).encode()))
    if os.wait()[1]:
        raise RuntimeError(f'the notebook of {name} fails as it is: run nbdev_export and nbdev_test')
    reached, seconds = json.loads(os.read(reading, 1 << 20))
    most = 10 + 3 * sum(seconds)

    def from_cell(number):
        numbers = sorted(range(number, len(cells)), key=lambda n: seconds[n] > LONG)
        return [cells[n] for n in numbers]

    unchanged = fork(lambda: run_mutant(module, dict(source=source, function=''), from_cell(0), space, most))
    if os.waitpid(unchanged, 0)[1]:
        raise RuntimeError(
            f'the notebook of {name} fails with its own code put in place: a fault of this script'
        )
    first = {'': 0}  # code outside of functions
    for start, end, function in functions(source):
        cells_there = [reached[str(line)] for line in range(start, end + 1) if str(line) in reached]
        if first.get(function) is not None:  # the getter of a property, when this is its setter
            cells_there.append(first[function])
        first[function] = min(cells_there, default=None)
    mutants = [
        dict(mutant, start=first[mutant['function']])
        for mutant in find_mutants(name, source)
        if chosen(mutant['text'])
    ]
    survivors = [mutant for mutant in mutants if mutant['start'] is None]  # those that nothing reaches
    running, stuck = {}, []

    def wait(number):
        while len(running) > number:
            child, status = os.wait()
            mutant = running.pop(child)
            if status == 0:
                survivors.append(mutant)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
                stuck.append(mutant)

    for number, cell in enumerate(cells):
        for mutant in mutants:
            if mutant['start'] == number:
                wait(PROCESSES - 1)
                child = fork(lambda: run_mutant(module, mutant, from_cell(number), space, most))
                running[child] = mutant
        wait(PROCESSES - 1)
        run_cell(cell, space, module)
    wait(0)
    return mutants, sorted(survivors, key=lambda mutant: mutant['line']), len(stuck)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', required=True, type=Path, help='folder for mutants.json')
    parser.add_argument('--modules', nargs='+', default=list(NOTEBOOKS), choices=list(NOTEBOOKS))
    parser.add_argument('--only', type=Path, help='a mutants.json: run its survivors alone')
    parser.add_argument('--match', default='', help='run mutants with this text in their description alone')
    asked = parser.parse_args()
    former = (
        {survivor['text'] for survivor in json.loads(asked.only.read_text())['survivors']}
        if asked.only
        else None
    )
    accepted = {
        text: entry['reason']
        for entry in yaml.safe_load(ACCEPTED.read_text(encoding='utf-8'))
        for text in entry['mutants']
    }
    hypothesis.settings.register_profile(
        'mutants', phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
    )  # no time for the smallest example
    hypothesis.settings.load_profile('mutants')
    rows, found = [], []
    for name in asked.modules:
        started = time.time()
        mutants, survivors, stuck = try_mutants(
            name, lambda text: asked.match in text and (former is None or text in former)
        )
        found += [
            dict(text=mutant['text'], line=mutant['line'], reason=accepted.get(mutant['text']))
            for mutant in survivors
        ]
        unlisted = sum(mutant['text'] not in accepted for mutant in survivors)
        rows.append(
            dict(
                module=name,
                mutants=len(mutants),
                killed=len(mutants) - len(survivors),
                survived=len(survivors),
                unlisted=unlisted,
                stuck=stuck,
            )
        )
        print(f'{rows[-1]} after {time.time() - started:.0f} s', flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / 'mutants.json').write_text(json.dumps(dict(modules=rows, survivors=found), indent=1))
    for survivor in found:
        if not survivor['reason']:
            print(f'\nsurvived, not in {ACCEPTED.name}: line {survivor["line"]} of {survivor["text"]}')
    whole = not asked.match and former is None
    sys.exit(any(row['unlisted'] or whole and row['killed'] < 0.9 * row['mutants'] for row in rows))


if __name__ == '__main__':
    main()
