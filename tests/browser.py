"A real browser before JupyterLab and Voila: servers, notebooks run without races, checks of a page."

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from PIL import Image
from playwright.sync_api import sync_playwright

FLAGS = (
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
)
HARMLESS = (
    '@fortawesome/fontawesome-free',  # Voila's template asks a CDN for the icons of its own buttons
    'labextensions/jupyterlab-jupytext',  # comes with kaggle, and does not fit into Voila
    'voila/api/shutdown',  # of a page that is left: Voila refuses its own request, so kernels are culled
)
THEMES = {'light': 'JupyterLab Light', 'dark': 'JupyterLab Dark'}
VOILA = (  # leaves the lesson out
    'voila',
    '{root}',
    '--no-browser',
    '--Voila.ip=127.0.0.1',
    '--port={port}',
    '--TagRemovePreprocessor.remove_cell_tags=lesson',
    '--MappingKernelManager.cull_idle_timeout=20',  # Voila keeps kernels of closed pages
    '--MappingKernelManager.cull_interval=5',
)
HEIGHT = 1400  # [pixels] of the viewport: a whole panel
CONTRAST = 4.5  # at least, of a text (WCAG 2, level AA)


def find_chromium():
    "Give the path of a Chromium; without one, fail in CI, which installs it, and skip elsewhere."
    for name in ('chromium', 'chromium-browser', 'google-chrome'):
        if path := shutil.which(name):
            return path
    (pytest.fail if os.environ.get('CI') else pytest.skip)(
        'no chromium, chromium-browser or google-chrome on the PATH: apt-get install chromium, then run again'
    )


@pytest.fixture(scope='module')
def browser():
    "A headless Chromium."
    path = find_chromium()
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start_server(home, *command, limit=60):
    "Start a server over a copy of nbs/, away from the user's settings; give its process, address and copy."
    root, port = home / 'nbs', free_port()
    shutil.copytree(
        ROOT / 'nbs',
        root,
        symlinks=True,
        ignore=shutil.ignore_patterns('_runs', '.ipynb_checkpoints', 'images'),
    )
    folders = dict(
        HOME='',
        JUPYTER_CONFIG_DIR='config',
        JUPYTER_DATA_DIR='data',
        JUPYTER_RUNTIME_DIR='runtime',
        IPYTHONDIR='ipython',
        JUPYTERLAB_SETTINGS_DIR='settings',
        JUPYTERLAB_WORKSPACES_DIR='workspaces',
    )
    env = {
        **os.environ,
        **{name: str(home / folder) for name, folder in folders.items()},
        'PYTHONPATH': str(ROOT),
        'OMP_NUM_THREADS': '1',
    }
    with open(home / 'server.log', 'w') as log:
        process = subprocess.Popen(
            [sys.executable, '-m', *(part.format(root=root, port=port) for part in command)],
            env=env,
            stdout=log,
            stderr=log,
            cwd=home,
        )
    end = time.monotonic() + limit
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(('127.0.0.1', port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return SimpleNamespace(process=process, url=f'http://127.0.0.1:{port}', root=root)
    process.kill()
    pytest.fail(f'{command[0]} did not start: {(home / "server.log").read_text()[-2000:]}')


def stop_server(server):
    server.process.terminate()
    try:
        server.process.wait(20)
    except subprocess.TimeoutExpired:
        server.process.kill()


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "Address of a JupyterLab over a copy of nbs/."
    home = tmp_path_factory.mktemp('lab')
    settings = home / 'settings/@jupyterlab/apputils-extension'
    settings.mkdir(parents=True)
    (settings / 'notification.jupyterlab-settings').write_text(
        json.dumps(dict(fetchNews='false', checkForUpdates=False))
    )
    server = start_server(
        home,
        'jupyterlab',
        '--no-browser',
        '--allow-root',
        '--ip=127.0.0.1',
        '--port={port}',
        '--ServerApp.port_retries=0',
        '--IdentityProvider.token=',
        '--ServerApp.disable_check_xsrf=True',
        '--ServerApp.root_dir={root}',
        '--LabApp.expose_app_in_browser=True',
    )
    yield server.url
    stop_server(server)


@pytest.fixture(scope='module')
def voila(tmp_path_factory):
    "Function: notebook seen from nbs/ -> its address in a Voila that leaves the lesson out."
    server = start_server(tmp_path_factory.mktemp('voila'), *VOILA)
    yield lambda notebook, theme='light': f'{server.url}/voila/render/{notebook}?theme={theme}'
    stop_server(server)


def open_page(browser, width=1280):
    "Open an empty page that reaches this machine only; `page.problems` collects what goes wrong in it."
    page = browser.new_page(viewport=dict(width=width, height=HEIGHT))
    page.problems = []

    def note(text, url=''):
        if not any(name in f'{text} {url}' for name in HARMLESS):
            page.problems.append(f'{text} {url}'.strip())

    def guard(route):
        if route.request.url.startswith(('http://127.0.0.1:', 'data:', 'blob:')):
            return route.fallback()
        note('asks the network for', route.request.url)
        route.abort()

    page.route('**/*', guard)
    page.on('pageerror', lambda error: note(f'error in the page: {error}'))
    page.on(
        'console',
        lambda message: (
            message.type == 'error' and note(f'console: {message.text}', message.location.get('url', ''))
        ),
    )
    return page


def run_all(page, url, notebook):
    "Open a notebook in JupyterLab, run all cells, and wait until the kernel is idle."
    page.goto(f'{url}/lab/tree/{notebook}?reset')
    page.wait_for_function(
        """() => window.jupyterapp?.commands.hasCommand('notebook:run-all-cells')
            && window.jupyterapp.shell.currentWidget?.sessionContext""",
        timeout=60_000,
    )
    # before the kernel is known, a dialogue would ask for one
    page.evaluate("""async () => {
        const w = window.jupyterapp.shell.currentWidget;
        await w.context.ready;
        await w.sessionContext.ready;
        await w.sessionContext.session.kernel.info;
    }""")
    page.evaluate("""() => {
        window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => window.ranAll = true);
    }""")
    page.wait_for_function(
        """() => window.ranAll
            && window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'""",
        timeout=120_000,
    )
    errors = page.evaluate("""() => window.jupyterapp.shell.currentWidget.content.widgets
        .filter(cell => cell.model.type === 'code')
        .flatMap(cell => cell.model.outputs.toJSON())
        .filter(output => output.output_type === 'error')
        .map(output => output.ename + ': ' + output.evalue)""")
    assert not errors, f'{notebook}: {errors}'


def show_panel(page):
    "Scroll to the notebook's last widgets, and wait for figures that keep their place."
    page.wait_for_selector('.jp-OutputArea-output .jupyter-widgets', state='attached', timeout=60_000)
    page.evaluate("""() => [...document.querySelectorAll('.jp-OutputArea-output:has(.jupyter-widgets)')]
        .at(-1).scrollIntoView({block: 'start'})""")
    settle(page)


def open_app(page, url):
    "Open a notebook in Voila, which runs it, and wait for its figures."
    page.goto(url, timeout=120_000)
    page.wait_for_selector('.jupyter-widgets', timeout=60_000)
    errors = page.locator(
        '.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"], .voila-error'
    ).all_inner_texts()
    assert not errors, errors


def close(page):
    "Close a page, and in JupyterLab its kernel with it."
    page.evaluate('() => window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown()')
    page.close()


def settle(page, quiet=0.5, limit=30):
    "Wait until all figures are drawn and, for a while, nothing has moved."
    places = """() => [...document.querySelectorAll('.js-plotly-plot, .svg-container, .jupyter-widgets')]
        .map(e => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })"""
    page.wait_for_function(
        """() => {
            const f = [...document.querySelectorAll('.js-plotly-plot')];
            return f.length && f.every(e => e._fullLayout && e.calcdata);
        }""",
        timeout=60_000,
    )
    before, since, end = page.evaluate(places), time.monotonic(), time.monotonic() + limit
    while time.monotonic() - since < quiet and time.monotonic() < end:
        page.wait_for_timeout(100)
        now = page.evaluate(places)
        if now != before:
            before, since = now, time.monotonic()


def use_theme(page, theme):
    "Change the theme of JupyterLab, and wait for its styles."
    page.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", THEMES[theme]
    )
    page.wait_for_function(
        'theme => document.body.dataset.jpThemeName === theme', arg=THEMES[theme], timeout=30_000
    )


def use_width(page, width):
    "Change the width of the window."
    page.set_viewport_size(dict(width=width, height=HEIGHT))
    page.wait_for_timeout(200)  # until figures have noticed


STATUS = (  # of the cockpit
    "[...document.querySelectorAll('.widget-html-content')].map(e => e.innerText)"
    ".find(text => /, row \\d/.test(text)) ?? ''"
)


def press(page, name):
    "Press the button of the cockpit that has this name."
    page.locator('.nl-panel button', has_text=re.compile(rf'^\s*{name}\s*$')).click()


def read_status(page):
    "Read the line of words below the cockpit's bar."
    return page.evaluate(f'() => {STATUS}')


def wait_for_status(page, pattern):
    "Wait until the cockpit's status fits; return its step."
    page.wait_for_function(f'pattern => new RegExp(pattern).test({STATUS})', arg=pattern, timeout=120_000)
    return int(page.evaluate(f"() => ({STATUS}).match(/step ([\\d,]+)/)[1].replace(',', '')"))


def check_contrast(page):
    "List texts that are too faint to be read by everyone."
    return [f"'{words}' has a contrast of {c:.1f}" for c, words in measure_contrast(page) if c < CONTRAST]


def check_layout(page):
    "List what a person would complain about: empty figures, overlaps, what is cut off."
    return page.evaluate((Path(__file__).parent / 'layout.js').read_text())


def luminance(colour):
    "Relative luminance of WCAG 2."
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def measure_contrast(page):
    "Measure each text in sight, as (contrast, words): its colour against the commonest colour behind it."
    texts = page.evaluate((Path(__file__).parent / 'contrast.js').read_text())
    picture = Image.open(io.BytesIO(page.screenshot())).convert('RGB')
    found = []
    for text in texts:
        x, y, wide, high = (round(v) for v in text['box'])
        part = picture.crop((max(x, 0), max(y, 0), x + max(wide, 1), y + max(high, 1)))
        if 0 in part.size:
            continue
        _, behind = max(part.getcolors(part.width * part.height))
        ink = [text['alpha'] * c + (1 - text['alpha']) * b for c, b in zip(text['colour'], behind)]
        found.append((contrast(ink, behind), text['words']))
    return sorted(found)
