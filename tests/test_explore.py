"The notebooks to explore, driven by a real browser in JupyterLab and in Voila."
import statistics

import pytest

from browser import browser, check_layout, lab, open_app, open_page, run_all, show_panel, use_theme, use_width, voila  # noqa: F401 (fixtures)
from conftest import ROOT

NOTEBOOKS = sorted(path.name for path in (ROOT/'nbs/explore').glob('[!_]*.ipynb'))
WIDTHS = (1280, 1920)

def look(page, name, theme, shots, found):
    "Check the page at each width; write its picture if asked."
    for width in WIDTHS:
        use_width(page, width)
        if '/lab' in page.url: show_panel(page)
        found += [f'{theme}, {width} pixels: {problem}' for problem in check_layout(page)]
        if shots: page.screenshot(path=shots/f'{name}-{theme}-{width}.png')

@pytest.mark.parametrize('notebook', NOTEBOOKS)
def test_lab(notebook, browser, lab, screenshots):
    page, found = open_page(browser), []
    run_all(page, lab, f'explore/{notebook}')
    for theme in ('light', 'dark'):
        use_theme(page, theme)
        look(page, f'lab-{notebook}', theme, screenshots, found)
    use_theme(page, 'light')
    found += page.problems
    page.evaluate('() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()')
    page.close()
    assert not found, '\n'.join(found)

@pytest.mark.parametrize('theme', ('light', 'dark'))
@pytest.mark.parametrize('notebook', NOTEBOOKS)
def test_voila(notebook, theme, browser, voila, screenshots):
    page, found = open_page(browser), []
    open_app(page, voila(f'explore/{notebook}', theme))
    look(page, f'voila-{notebook}', theme, screenshots, found)
    found += page.problems
    page.close()
    assert not found, '\n'.join(found)
