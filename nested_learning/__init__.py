"""A Jupyter-first workbook for continual learning with Nested Learning.

`import nested_learning as nl` is light: each name below is imported when it is first used.
"""
import importlib

__version__ = "0.1.0"

_HOMES = {  # public name -> module that defines it, or the module itself
    'run': 'runs.experiment',
    'resume': 'runs.experiment',
    'fork': 'runs.experiment',
    'load_config': 'config.load',
    'Config': 'config.load',
    'make_stream': 'stream.stream',
    'StreamConfig': 'stream.layout',
    'Stream': 'stream.value',
    'load_dataset': 'data.datasets',
    'Dataset': 'data.splits',
    'NestedLearningNetwork': 'model.networks',
    'PlainNetwork': 'model.networks',
    'CMSBlock': 'model.cms',
    'assign_levels': 'model.levels',
    'NestedOptimizer': 'optim.nested',
    'Consolidation': 'optim.averages',
    'Memory': 'methods.memory',
    'Method': 'methods.method',
    'ER': 'methods.method',
    'Learner': 'train.learner',
    'Run': 'runs.finished',
    'Store': 'runs.store',
    'load_model': 'runs.finished',
    'predict': 'runs.finished',
    'Cockpit': 'see.cockpit',
    'metrics': 'measure.metrics',
    'plots': 'see.plots',
}
_MODULES = ('metrics', 'plots')
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    home = importlib.import_module(f'{__name__}.{_HOMES[name]}')
    found = home if name in _MODULES else getattr(home, name)
    globals()[name] = found
    return found


def __dir__():
    return [*globals(), *_HOMES]
