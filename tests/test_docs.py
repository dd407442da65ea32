"README and the docs site are what the notebooks make them, and their commands are those that CI runs."

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from PIL import Image

from nested_learning.dev.docs import notebook_map, readme, relink, site
from nested_learning.dev.results import results_hash, results_table, study_sentence, study_table
from nested_learning.runs.grid import plan_runs, read_grid

README = (ROOT / 'README.md').read_text(encoding='utf-8')
COMMANDS = re.findall(r'^```sh\n(.*?)\n```', README, flags=re.DOTALL | re.MULTILINE)
FIRST, TEST = COMMANDS[0], next(block for block in COMMANDS if 'nbdev_test' in block)
FOR_READERS = ('explore', 'tutorials', 'runs')  # folders of notebooks that need the first command alone


def test_readme_in_sync():
    readme(check=True, root=ROOT)


def test_readme_claims_the_pythons_that_were_run():
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini')
    claimed = settings['DEFAULT']['pythons'].split()
    assert re.findall(r'Python (3\.\d+)', README) == claimed
    assert claimed[0] == settings['DEFAULT']['min_python']


def test_readme_tells_the_results(monkeypatch):
    monkeypatch.chdir(ROOT / 'nbs')
    assert relink(results_table('runs/results/digits.json'), 'nbs') in README, (
        'run nbs/index.ipynb, save it, and make README again'
    )
    study, again = 'runs/results/cifar100.json', 'run nbs/index.ipynb, save it, and make README again'
    for part in 'A', 'A3':
        assert relink(study_table(study, part), 'nbs') in README, again
    answers = ('A', 'steady', 'average'), ('A', 'consolidated', 'weights')
    assert study_sentence(study, *answers, ('`steady`', 'plain replay (`er`)')) in README, again
    assert relink(notebook_map(), 'nbs') in README, 'run nbs/index.ipynb, save it, and make README again'


def run_cells(cells):
    "Run the code cells of a notebook; yield each cell with what its last expression gives."
    names = {}
    for cell in cells:
        body = ast.parse(''.join(cell['source'])).body if cell['cell_type'] == 'code' else []
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), 'cell', 'exec'), names)
        yield cell, last and eval(compile(ast.Expression(last.value), 'cell', 'eval'), names)


@pytest.mark.parametrize('page', ['methods', 'negative_results', 'paper_map'])
def test_pages_tell_the_results(page, monkeypatch):
    "The tables of a page are what its code makes of the committed results and notebooks now."
    monkeypatch.chdir(ROOT / 'nbs')
    cells = json.loads((ROOT / f'nbs/{page}.ipynb').read_text(encoding='utf-8'))['cells']
    tables = 0
    for cell, made in run_cells(cells):
        saved = [output['data'] for output in cell.get('outputs', []) if 'data' in output]
        if saved and 'text/markdown' in saved[-1]:
            assert made.data == ''.join(saved[-1]['text/markdown']), f'run nbs/{page}.ipynb and save it'
            tables += 1
    assert tables >= 2


def test_readme_shows_the_grid():
    path = ROOT / 'nbs/runs/grids/digits.yaml'
    runs = plan_runs(read_grid(path))
    assert path.read_text(encoding='utf-8').split('\n', 1)[1] in README, (
        'README shows another grid than nbs/runs/grids/digits.yaml'
    )
    assert len(runs) == 12 and not any(run.config.model.use_nested_learning for run in runs)


def test_picture_in_sync():
    picture = (ROOT / 'nbs/images/first_run.png').read_bytes()
    assert results_hash(ROOT / 'nbs/runs/results/digits.json').encode() in picture, (
        'run python -m nested_learning.dev.docs figure'
    )


def test_readme_links_lead_somewhere():
    links = [link.partition('#')[0] for link in re.findall(r'\]\(([^)\s]+)\)', README)]
    own = 'https://github.com/nested-learning/nested-learning-workbook/blob/main/'
    local = [link.removeprefix(own) for link in links if not re.match('https?:', link.removeprefix(own))]
    assert [link for link in local if not (ROOT / link).exists()] == []
    assert {'nbs/images/first_run.png', 'nbs/images/cockpit.gif', 'nbs/images/cockpit.png'} <= set(local)


def test_readme_opens_with_a_film():
    opening = README.split('\n## ', 1)[0]
    (name,) = re.findall(r'!\[[^\]]{40,}\]\((\S+\.gif)\)', opening)
    assert (ROOT / name).stat().st_size < 3_000_000
    with Image.open(ROOT / name) as film:
        assert film.n_frames >= 25 and film.width >= 800 and film.info['loop'] == 0


def test_citation():
    "CITATION.cff has the version and the addresses of settings.ini, and the authors that README names."
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert {'cff-version', 'message', 'title', 'authors'} <= set(cited)  # what its format requires
    settings = ConfigParser(delimiters=['='])
    settings.read(ROOT / 'settings.ini')
    default = settings['DEFAULT']
    assert cited['version'] == default['version'] and cited['license'].lower() == default['license']
    assert cited['repository-code'] == default['git_url']
    assert cited['authors'] == [{'name': default['author']}]
    (paper,) = cited['references']
    names = [f'{author["given-names"]} {author["family-names"]}' for author in paper['authors']]
    link = f'[{paper["identifiers"][0]["value"]}]({paper["url"]})'
    assert f'{", ".join(names[:-1])} and {names[-1]}: *{paper["title"]}*, {paper["year"]}, {link}' in README
    assert paper['doi'] == '10.48550/' + paper['identifiers'][0]['value'].replace(':', '.')


def test_commands():
    for block in COMMANDS:
        subprocess.run(['bash', '-n'], input=block, text=True, check=True)
    assert (ROOT / '.ci/run').read_text().endswith('\n\n' + TEST + '\n')
    assert os.access(ROOT / '.ci/run', os.X_OK)
    notebook, result = re.search(r'papermill (\S+) (\S+\.ipynb)', FIRST).groups()
    assert (ROOT / notebook).is_file() and result == '_runs/first_run.ipynb'
    assert '/_runs/' in (ROOT / '.gitignore').read_text().splitlines()


def test_workflows():
    jobs = {
        path.stem: next(iter(yaml.safe_load(path.read_text())['jobs'].values()))
        for path in (ROOT / '.github/workflows').glob('*.yml')
    }
    runs = {name: [step['run'] for step in job['steps'] if 'run' in step] for name, job in jobs.items()}
    assert runs['test'] == ['bash .ci/run']
    assert runs['docs'][:2] == TEST.split(' &&\n')[:2]
    assert runs['docs'][2:] == ['.venv/bin/python -m nested_learning.dev.docs site _docs']


@pytest.mark.skipif(importlib.util.find_spec('smalldocs') is None, reason="the extra 'docs' is not installed")
def test_site(notebooks, tmp_path):
    assert site(tmp_path / 'site', root=ROOT) == len(notebooks)
    pages = {
        path.relative_to(tmp_path / 'site').as_posix(): path.read_text(encoding='utf-8')
        for path in (tmp_path / 'site').rglob('*.html')
    }
    assert 'id="derive_seed"' in pages['core.html'] and 'Derive the seed of one purpose' in pages['core.html']
    assert '<summary>Source</summary>' in pages['core.html'] and 'Plotly.newPlot' in pages['docs.html']
    assert '#| export' not in pages['core.html']
    assert not [name for name, text in pages.items() if 'https://cdn.plot.ly' in text]
    assert (tmp_path / 'site/site_libs/plotly.min.js').is_file()
    styles = [path.read_text(encoding='utf-8') for path in (tmp_path / 'site').rglob('*.css')]
    assert styles and not [text for text in styles if 'googleapis' in text]
    scripts = [name for name, text in pages.items() if re.search(r'<(script|link)\b[^>]*katex', text)]
    assert '<math' in pages['cms.html'] and not scripts
    linked = re.findall(r'href="([^"#]+\.html)"[^>]*sidebar-link', pages['index.html'])
    assert set(linked) == set(pages)
    for name in re.findall(r'src="(images/[^"]+)"', pages['index.html']):
        assert (tmp_path / 'site' / name).read_bytes() == (ROOT / 'nbs' / name).read_bytes()
    assert 'src="images/cockpit.gif"' in pages['index.html']


def check_executed(path):
    "See that an executed notebook has no error, and at least one figure."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    outputs = [output for cell in cells for output in cell.get('outputs', [])]
    assert not any(output['output_type'] == 'error' for output in outputs)
    assert any('application/vnd.plotly.v1+json' in output.get('data', {}) for output in outputs)


@pytest.mark.slow
def test_first_command(clone):
    """From a fresh clone and a fresh environment to an executed notebook with figures; every other notebook
    that a reader opens runs there too."""
    own = str(Path(sys.prefix, 'bin'))
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in ('VIRTUAL_ENV', 'PYTHONPATH', 'PYTHONHOME')
    }
    env['PATH'] = os.pathsep.join(
        folder for folder in env['PATH'].split(os.pathsep) if folder != own or sys.prefix == sys.base_prefix
    )
    subprocess.run(['bash', '-c', FIRST], cwd=clone, env=env, check=True, stdin=subprocess.DEVNULL)
    check_executed(clone / '_runs/first_run.ipynb')
    notebooks = sorted(path for name in FOR_READERS for path in (clone / 'nbs' / name).glob('*.ipynb'))
    failed = {}
    for path in notebooks:
        name, started = f'{path.parent.name}/{path.name}', time.monotonic()
        result = clone / '_runs' / path.parent.name / path.name
        result.parent.mkdir(exist_ok=True)
        words = [clone / '.venv/bin/papermill', '--no-progress-bar', path, result]
        done = subprocess.run(words, cwd=clone, env=env, capture_output=True, text=True)
        print(f'{name}: {time.monotonic() - started:.0f} s')
        if done.returncode:
            failed[name] = done.stderr[-2000:]
    assert not failed, '\n'.join(f'{name}: {message}' for name, message in failed.items())
    assert len(notebooks) > 15
