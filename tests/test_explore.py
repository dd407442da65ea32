"The notebooks to explore, driven by a real browser in JupyterLab and in Voila."
import statistics

import pytest

from browser import browser, check_layout, close, lab, open_app, open_page, run_all, show_panel, use_theme, use_width, voila  # noqa: F401 (fixtures)
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
    close(page)
    assert not found, '\n'.join(found)

@pytest.mark.parametrize('theme', ('light', 'dark'))
@pytest.mark.parametrize('notebook', NOTEBOOKS)
def test_voila(notebook, theme, browser, voila, screenshots):
    page, found = open_page(browser), []
    open_app(page, voila(f'explore/{notebook}', theme))
    look(page, f'voila-{notebook}', theme, screenshots, found)
    found += page.problems
    close(page)
    assert not found, '\n'.join(found)

FIRST = "document.querySelector('.js-plotly-plot')"  # on the page: the panel's first figure

def time_slider(page, presses=3):
    "Press an arrow key on the first slider and wait for the first figure; give the seconds of each press, measured in the page."
    page.evaluate(f"""() => {{
        const figure = {FIRST};
        window.pressed = window.drawn = null;
        document.addEventListener('keydown', () => {{ window.pressed = performance.now(); window.drawn = null; }}, true);
        figure.on('plotly_afterplot', () => {{ window.drawn ??= performance.now(); }});
    }}""")
    data = f"() => JSON.stringify({FIRST}.data.map(trace => trace.y))"
    page.locator('.noUi-handle').first.focus()
    seconds = []
    for _ in range(presses):
        before = page.evaluate(data)
        page.keyboard.press('ArrowRight')
        page.wait_for_function("() => window.drawn > window.pressed", timeout=30_000)
        assert page.evaluate(data) != before, 'the figure was drawn again, but shows the same'
        seconds.append(page.evaluate("() => (window.drawn - window.pressed)/1000"))
        page.wait_for_timeout(300)  # until what follows this press is over
    return seconds

@pytest.mark.parametrize('server', ('lab', 'voila'))
def test_slider(server, browser, request):
    "The composition of the stream follows a slider in less than a second."
    page, address = open_page(browser), request.getfixturevalue(server)
    if server == 'lab': run_all(page, address, 'explore/stream.ipynb')
    else: open_app(page, address('explore/stream.ipynb'))
    seconds = time_slider(page)
    print(f'{server}: {", ".join(f"{s:.2f}" for s in seconds)} s')
    readout = page.locator('.widget-readout').first.inner_text()
    close(page)
    assert readout == '13%'
    assert statistics.median(seconds) < 1, seconds
