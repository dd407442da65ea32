"The notebooks to explore, looked at and driven by a real browser in JupyterLab and in Voila."

import statistics

import pytest
from browser import (  # noqa: F401 (fixtures)
    browser,
    check_contrast,
    check_layout,
    close,
    lab,
    measure_contrast,
    open_app,
    open_page,
    press,
    run_all,
    settle,
    show_panel,
    use_theme,
    use_width,
    voila,
    wait_for_status,
)
from conftest import ROOT
from playwright.sync_api import expect
from plotly.offline import get_plotlyjs

LANDING = 'apps.ipynb'  # lists the others
NOTEBOOKS = sorted(path.name for path in (ROOT / 'nbs/explore').glob('[!_]*.ipynb') if path.name != LANDING)
WIDTHS = (1280, 1920)


def look(page, name, theme, shots):
    "List what is wrong with the page at each width; write its picture if asked."
    found = []
    for width in WIDTHS:
        use_width(page, width)
        for _ in range(5):  # figures may still be fitting themselves, and then move the page under the bar
            show_panel(page)
            if not (problems := [*check_layout(page), *check_contrast(page)]):
                break
            page.wait_for_timeout(1000)
        found += [f'{theme}, {width} pixels: {problem}' for problem in problems]
        if shots:
            page.screenshot(path=shots / f'{name}-{theme}-{width}.png')
    return found


def time_slider(page, presses=3):
    "Press an arrow key on the first slider; give the seconds until the figure, by the page's clock."
    page.evaluate("""() => {
        const press = () => { window.pressed = performance.now(); window.drawn = null; };
        const draw = () => { window.drawn ??= performance.now(); };
        document.addEventListener('keydown', press, true);
        document.querySelector('.js-plotly-plot').on('plotly_afterplot', draw);
    }""")
    data = "() => JSON.stringify(document.querySelector('.js-plotly-plot').data.map(trace => trace.y))"
    page.locator('.noUi-handle').first.focus()
    seconds = []
    for _ in range(presses):
        before = page.evaluate(data)
        page.keyboard.press('ArrowRight')
        page.wait_for_function('() => window.drawn', timeout=30_000)
        assert page.evaluate(data) != before, 'the figure was drawn again, but shows the same'
        seconds.append(page.evaluate('() => (window.drawn - window.pressed)/1000'))
        page.wait_for_timeout(300)  # until what follows this press is over
    return seconds


def drive_stream(page):
    "The composition follows a slider in less than a second."
    seconds = time_slider(page)
    print('from key to figure:', *(f'{s:.2f} s' for s in seconds))
    assert page.locator('.widget-readout').first.inner_text() == '13%'
    assert statistics.median(seconds) < 1, seconds


SAID = "document.querySelector('.widget-html-content').innerText"  # the first line of words of a panel


def read_step(page):
    "Read the step out of the first line of words."
    return page.evaluate(f'() => Number({SAID}.match(/step (\\d+)/)[1])')


def drive_levels(page):
    "Play goes on while a period is changed and other cells run, and Play pressed again holds it."
    play, first = page.get_by_role('button', name='Play', exact=True), read_step(page)
    play.click()
    page.wait_for_function(
        f"first => {SAID}.startsWith('Playing') && Number({SAID}.match(/step (\\d+)/)[1]) > first",
        arg=first + 3,
        timeout=30_000,
    )
    page.locator('.noUi-handle').nth(2).focus()  # the slow level
    page.keyboard.press('ArrowRight')
    page.wait_for_function(
        """() => [...document.querySelectorAll('.js-plotly-plot text')]
            .some(text => / of 30 steps/.test(text.textContent))""",
        timeout=30_000,
    )
    if '/lab' in page.url:
        execute(page, 'assert app.player.playing')
    play.click()
    page.wait_for_function(f"() => {SAID}.startsWith('At rest')", timeout=30_000)
    held = read_step(page)
    assert held > first
    page.wait_for_timeout(500)
    assert read_step(page) == held


def read_figure(page, title):
    "Give the x, y and z of the traces of a figure, by name; of two of one name, the first."
    return page.evaluate(
        """title => {
            const figure = [...document.querySelectorAll('.js-plotly-plot')]
                .find(f => f.layout.title?.text?.startsWith(title));
            const plain = values => values ? [...values].map(v => v?.length ? [...v] : v) : [];
            const read = trace => Object.fromEntries(['x', 'y', 'z'].map(k => [k, plain(trace[k])]));
            return Object.fromEntries(
                figure._fullData.map((trace, i) => [trace.name ?? i, read(trace)]).reverse());
        }""",
        title,
    )


def execute(page, code):
    "Run code in the kernel of a notebook in JupyterLab, beside whatever plays."
    reply = page.evaluate(
        """code => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel
            .requestExecute({code}).done""",
        code,
    )
    assert reply['content']['status'] == 'ok', reply['content']


def nudge(page, label, presses):
    "Focus the slider of a label and press an arrow key."
    page.locator('.widget-inline-hbox', has=page.get_by_text(label, exact=True)).locator(
        '.noUi-handle'
    ).focus()
    for _ in range(presses):
        page.keyboard.press('ArrowRight')


def play_cockpit(page):
    "Play until the matrix has its first cell, and pause."
    press(page, 'Play')
    wait_for_status(page, 'task [1-4]')
    press(page, 'Pause')
    wait_for_status(page, 'paused')
    page.wait_for_function(
        """() => [...document.querySelectorAll('.js-plotly-plot')]
            .some(f => f.layout.title?.text?.startsWith('Accuracy after') && f.data.length)""",
        timeout=30_000,
    )
    page.wait_for_timeout(1500)  # until all figures are drawn


def drive_cockpit(page):
    "Pause holds, Step adds one; periods and ratios change what is to come; a fork is compared, and all kept."
    in_lab, first = '/lab' in page.url, wait_for_status(page, 'paused')
    page.wait_for_timeout(500)
    assert wait_for_status(page, 'paused') == first
    press(page, 'Step')
    wait_for_status(page, f'step {first + 1},')
    if in_lab:
        execute(page, 'shown = cockpit.pair.live.view()')
    seconds = []
    for _ in range(3):
        before = read_figure(page, 'The stream')
        nudge(page, 'OOD, no task [%]', 3)
        pressed = page.evaluate('() => performance.now()')
        page.wait_for_function(
            """before => {
                const figure = [...document.querySelectorAll('.js-plotly-plot')]
                    .find(f => f.layout.title?.text?.startsWith('The stream'));
                return JSON.stringify([...figure._fullData.at(-1).y]) !== before;
            }""",
            arg=page.evaluate('y => JSON.stringify(y)', before['OOD']['y']),
            polling=20,
            timeout=30_000,
        )
        seconds.append((page.evaluate('() => performance.now()') - pressed) / 1000)
        page.wait_for_timeout(300)
    print('from a ratio to the figure:', *(f'{s:.2f} s' for s in seconds))
    assert statistics.median(seconds) < 1, seconds
    if in_lab:
        execute(
            page,
            'now = cockpit.pair.live.view()\n'
            'assert len(now.knobs) >= 3; assert now.stream.hash != shown.stream.hash\n'
            'assert now.stream.table[:now.position].equals(shown.stream.table[:now.position])',
        )
    nudge(page, 'period, medium [steps]', 1)  # from 5 to 7
    press(page, 'Play')
    wait_for_status(page, rf'step ({"|".join(str(first + k) for k in range(30, 300))}),')
    if in_lab:
        execute(page, 'assert cockpit.pair.state == "playing"')
    press(page, 'Pause')
    at = wait_for_status(page, 'paused')
    page.wait_for_timeout(1500)
    moves = read_figure(page, 'Moves')['medium']['x']
    assert moves[-1] - moves[-2] == 7 and moves[1] - moves[0] == 5, moves
    press(page, 'Fork here')
    wait_for_status(page, 'B: paused')
    press(page, 'Step')
    wait_for_status(page, f'B: paused, step {at + 1},')
    page.wait_for_function(
        """() => [...document.querySelectorAll('.js-plotly-plot')]
            .some(f => f.offsetWidth && f.layout.title?.text?.startsWith('A (solid)'))""",
        timeout=30_000,
    )
    press(page, 'Save')
    page.get_by_text('papermill nbs/runs/one_run.ipynb').wait_for(timeout=30_000)
    if not in_lab:
        return
    execute(
        page,
        'import time; folder = cockpit.pair.live.drive.folder; end = time.time()+30\n'
        'while len(list((folder/"figures").glob("*.png"))) < 7 and time.time() < end: time.sleep(.2)\n'
        'assert all(path.stat().st_size > 5000 for path in (folder/"figures").glob("*.png"))\n'
        'pngs, htmls = (list((folder/"figures").glob(f"*.{end}")) for end in ("png", "html"))\n'
        'assert len(pngs) == 7 == len(htmls), sorted(folder.rglob("*"))\n'
        'assert (folder/"config.yaml").is_file()\n'
        'loads = cockpit.painter.load, cockpit.pair.runs["A"].load\n'
        'assert sum(loads) <= .15, loads\n'
        'print(*loads)',
    )


def drive_forgetting(page):
    "Play, slowed down by a key, shows both tasks; Pause holds all three runs; Step makes one step."
    page.locator('.noUi-handle').nth(1).focus()  # the speed: to 5 steps a second
    for _ in range(4):
        page.keyboard.press('ArrowLeft')
    press(page, 'Play')
    page.wait_for_function(
        """() => { const curves = [...document.querySelectorAll('.js-plotly-plot')]
            .find(f => f.layout.title?.text?.startsWith('Class-IL')).data;
        const count = name => curves.filter(curve => curve.name === name).length;
        return count('task 0') === 3 && count('task 1') === 3; }""",
        timeout=120_000,
    )
    press(page, 'Pause')
    page.wait_for_function(f"() => {SAID}.startsWith('paused')", timeout=30_000)
    held = read_step(page)
    page.wait_for_timeout(500)
    assert read_step(page) == held
    press(page, 'Step')
    page.wait_for_function(
        f'step => {SAID}.startsWith(`paused, step ${{step}} `)', arg=held + 1, timeout=30_000
    )


def wait_for_title(page, pattern):
    "Wait for a figure of the panel whose title fits."
    page.wait_for_function(
        """pattern => [...document.querySelectorAll('.nl-panel .js-plotly-plot')]
            .some(f => new RegExp(pattern).test(f.layout.title?.text))""",
        arg=pattern,
        timeout=30_000,
    )


def drive_results(page):
    "Two runs chosen and others filtered by keyboard: confusion matrix and forgotten images follow."
    runs, words = page.locator('.nl-panel select[multiple]'), page.get_by_placeholder('such as: er seed=1')
    runs.focus()
    page.keyboard.press('Home')
    page.keyboard.press('Shift+ArrowDown')
    wait_for_title(page, '^consolidated-seed0: test images at the end')
    wait_for_title(page, '^consolidated-seed0: task 0: ')
    page.wait_for_function(
        "() => document.querySelectorAll('.nl-panel table thead th').length === 3"
    )  # a column each, after that of the names
    before = read_figure(page, 'consolidated-seed0: test')['test images']['z']
    words.fill('fine')
    words.press('Enter')
    wait_for_title(page, '^fine_tune-seed0: test images at the end')
    wait_for_title(page, r'^fine_tune-seed0: task 0: [1-9]\d* of ')
    after = read_figure(page, 'fine_tune-seed0: test')['test images']['z']
    assert after != before and all(abs(sum(row) - 100) < 0.01 for row in after), after
    assert runs.locator('option').all_inner_texts() == ['fine_tune-seed0', 'fine_tune-seed1']
    assert len(read_figure(page, 'fine_tune-seed0: task 0')['answers']['x']) > 0
    if '/lab' in page.url:
        execute(
            page,
            'chosen = app.controls.runs.value\n'
            'assert chosen == ("fine_tune-seed0", "fine_tune-seed1"), chosen',
        )


PREPARE = {'cockpit.ipynb': play_cockpit}
DRIVE = {
    'stream.ipynb': drive_stream,
    'levels.ipynb': drive_levels,
    'cockpit.ipynb': drive_cockpit,
    'forgetting.ipynb': drive_forgetting,
    'results.ipynb': drive_results,
}


@pytest.mark.parametrize('notebook', NOTEBOOKS)
def test_lab(notebook, browser, lab, screenshots):  # noqa: F811
    page, found = open_page(browser), []
    run_all(page, lab, f'explore/{notebook}')
    if notebook in PREPARE:
        PREPARE[notebook](page)
    for theme in ('dark', 'light'):
        use_theme(page, theme)
        found += look(page, f'lab-{notebook}', theme, screenshots)
    if notebook in DRIVE:
        DRIVE[notebook](page)
    found += page.problems
    close(page)
    assert not found, '\n'.join(found)


@pytest.mark.parametrize(
    'theme', ('light', pytest.param('dark', marks=pytest.mark.slow))
)  # JupyterLab shows both in each run
@pytest.mark.parametrize('notebook', NOTEBOOKS)
def test_voila(notebook, theme, browser, voila, screenshots):  # noqa: F811
    page = open_page(browser)
    open_app(page, voila(f'explore/{notebook}', theme))
    if notebook in PREPARE:
        PREPARE[notebook](page)
    found = look(page, f'voila-{notebook}', theme, screenshots)
    if notebook in DRIVE and theme == 'light':
        DRIVE[notebook](page)
    found += page.problems
    close(page)
    assert not found, '\n'.join(found)


def test_landing(browser, voila, screenshots):  # noqa: F811
    "The landing page leads to each app, with a sentence about it, and each app leads back."
    page = open_page(browser)
    page.goto(voila(f'explore/{LANDING}'), timeout=120_000)
    page.get_by_role('heading', name='The apps').wait_for(timeout=120_000)
    entries = page.locator('li', has=page.locator('a'))
    texts = dict(
        zip(
            entries.locator('a').evaluate_all("all => all.map(a => a.getAttribute('href'))"),
            entries.all_inner_texts(),
        )
    )
    assert sorted(texts) == NOTEBOOKS, texts
    assert all(': ' in text and text.endswith('.') for text in texts.values()), texts
    if screenshots:
        page.screenshot(path=screenshots / 'voila-apps.png')
    found = check_contrast(page)
    page.locator('a[href="stream.ipynb"]').click()
    page.get_by_role('heading', name='Explore the stream').wait_for(timeout=120_000)
    settle(page)
    page.get_by_text('What to try').wait_for(timeout=30_000)  # stays with the figures
    assert not page.get_by_text('without code').count()
    page.locator(f'a[href="{LANDING}"]').click()
    page.get_by_role('heading', name='The apps').wait_for(timeout=120_000)
    problems = found + page.problems
    close(page)
    assert not problems, '\n'.join(problems)


FOCUSED = """() => {
    const e = document.activeElement, style = getComputedStyle(e);
    if (!e.closest('.nl-panel')) return null;
    return [e.className, style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2];
}"""


@pytest.mark.parametrize('theme', ('light', 'dark'))
def test_readable(theme, browser, voila, screenshots):  # noqa: F811
    "All texts of the cockpit can be read, a refusal too, which stands where it was typed; the focus is seen."
    page = open_page(browser, 1400)
    page.set_viewport_size(dict(width=1400, height=2000))
    open_app(page, voila('explore/cockpit.ipynb', theme))
    page.locator('summary').click()  # the words explained
    play_cockpit(page)
    press(page, 'Restart')
    wait_for_status(page, 'ready')
    seed = page.locator('.widget-text', has=page.get_by_text('seed', exact=True)).locator('input')
    seed.fill('-1')
    seed.press('Enter')
    note = page.locator('.nl-side .nl-refused')
    note.wait_for(timeout=30_000)
    below = note.bounding_box()['y'] - seed.bounding_box()['y']
    assert 0 < below < 60, below
    press(page, 'Undo')
    expect(seed).to_have_value('0', timeout=30_000)
    expect(note).to_have_count(0)
    press(page, 'Watch forgetting')
    wait_for_status(page, 'task [1-4]')
    press(page, 'Pause')
    wait_for_status(page, 'paused')
    page.wait_for_timeout(1500)
    press(page, 'Fork here')
    wait_for_status(page, 'B: paused')
    page.wait_for_timeout(3000)
    found = check_contrast(page)
    assert len(measure_contrast(page)) > 150
    if screenshots:
        page.screenshot(path=screenshots / f'readable-{theme}.png', full_page=True)
    page.locator('.nl-bar').get_by_role('button', name='Step').focus()
    seen = {}
    for _ in range(60):
        page.keyboard.press('Tab')
        focused = page.evaluate(FOCUSED)
        if focused:
            seen[focused[0]] = focused[1]
    assert len(seen) > 4 and all(seen.values()), seen
    found += page.problems
    close(page)
    assert not found, '\n'.join(found)


FIRST = ('Accuracy after', 'Accuracy on', 'Moves')  # figures that are in sight as the page opens
SIGHT = """titles => {
    const box = e => e.getBoundingClientRect();
    const inside = e => box(e).top >= 0 && box(e).bottom <= innerHeight + 1;
    const figures = [...document.querySelectorAll('.nl-figures .js-plotly-plot')];
    const of = title => figures.find(f => f.layout.title?.text?.startsWith(title));
    return {
        bar: inside(document.querySelector('.nl-bar')),
        figures: titles.map(title => inside(of(title))),
        drawn: titles.map(title => of(title).data.length > 0),
        first: inside(figures[0]),
        controls: box(document.querySelector('.nl-side')).top < innerHeight / 2,
        wide: document.documentElement.scrollWidth > document.documentElement.clientWidth,
    };
}"""


def test_first_view(browser, voila, screenshots):  # noqa: F811
    "The cockpit opens alive; bar, figures and controls are in sight; the bar stays; a story is one click."
    page = open_page(browser, 1400)
    page.set_viewport_size(dict(width=1400, height=900))
    open_app(page, voila('explore/cockpit.ipynb'))
    wait_for_title(page, '^Moves and drift')
    page.wait_for_function(
        """() => [...document.querySelectorAll('.nl-figures .js-plotly-plot')]
            .every(f => f.data.length)""",
        timeout=120_000,
    )
    for width, height in ((1400, 900), (1280, 720), (390, 844)):
        page.set_viewport_size(dict(width=width, height=height))
        page.wait_for_timeout(1000)
        seen = page.evaluate(SIGHT, FIRST)
        assert all(seen['drawn']) and seen['bar'] and seen['first'] and not seen['wide'], (width, seen)
        if width > 1000:
            assert all(seen['figures']) and seen['controls'], (width, seen)
        if screenshots:
            page.screenshot(path=screenshots / f'first-view-{width}.png')
    page.set_viewport_size(dict(width=1280, height=720))
    page.evaluate('() => window.scrollTo(0, document.documentElement.scrollHeight)')
    page.wait_for_timeout(500)
    assert page.evaluate(SIGHT, FIRST)['bar']
    page.evaluate('() => window.scrollTo(0, 0)')
    press(page, 'Watch forgetting')
    page.get_by_text('overwrites what the last one had written').wait_for(timeout=30_000)
    wait_for_status(page, 'task [1-4]')
    page.locator('.nl-figures').click(position=dict(x=5, y=5))
    page.keyboard.press(' ')
    at = wait_for_status(page, 'paused')
    page.keyboard.press('ArrowRight')
    wait_for_status(page, f'step {at + 1},')
    press(page, 'Controls')
    page.wait_for_function("() => !document.querySelector('.nl-side').offsetWidth", timeout=30_000)
    problems = page.problems
    close(page)
    assert not problems, '\n'.join(problems)


def test_first_view_in_lab(browser, lab, screenshots):  # noqa: F811
    "Where a notebook's code fills the window, the panel comes to its top when the cells have run."
    page = open_page(browser, 1400)
    page.set_viewport_size(dict(width=1400, height=900))
    run_all(page, lab, 'explore/cockpit.ipynb')
    page.wait_for_function(
        """() => [...document.querySelectorAll('.nl-figures .js-plotly-plot')]
            .every(f => f.data?.length)""",
        timeout=120_000,
    )
    page.wait_for_timeout(1000)
    if screenshots:
        page.screenshot(path=screenshots / 'first-view-lab.png')
    seen = page.evaluate(SIGHT, FIRST)
    execute(page, 'import time; begun = time.process_time()')
    play_cockpit(page)
    execute(page, 'spent = time.process_time() - begun; assert spent < 5, spent')  # on a quiet core, the time
    problems = list(page.problems)  # without those of closing
    close(page)
    assert all(seen['figures']) and seen['bar'] and seen['controls'], seen
    assert not problems, '\n'.join(problems)


GOOD = """<div style="width:600px"><div class="jupyter-widgets">
<label class="widget-label" style="display:block;width:90px">short</label></div>
<div id="figure"></div></div>"""
FAULTS = {  # what a page does wrong, and what is said about it
    """figure.layout.title.text = 'x'.repeat(200);
    Plotly.react(figure, figure.data, figure.layout)""": 'is cut off',
    'Plotly.react(figure, [], {width: 500, height: 300})': 'has no traces',
    "Plotly.react(figure, [{x: [], y: [], type: 'scatter'}], {width: 500, height: 300})": 'draws no point',
    'Plotly.relayout(figure, {height: 170})': 'a plot area of',
    """Plotly.relayout(figure, {
        annotations: [1, 1.01].map(x => ({x, y: 2, text: 'two words', showarrow: false})),
    })""": 'lies over',
    "figure.style.marginTop = '-12px'": 'overlaps',
    "figure.parentElement.style.cssText = 'width:300px;overflow:hidden'": 'is wider than its place',
    "figure.style.marginLeft = '1000px'": 'the page is',
    """document.querySelector('label').style.cssText =
        'display:block;width:20px;overflow:hidden'""": "'short' is cut off",
}


def test_measure_contrast(browser):  # noqa: F811
    "Texts are measured against what is behind them, in the colour that they have after all transparency."
    page = open_page(browser)
    page.set_content(
        """<body style="background: white"><div class="nl-panel">
        <p style="color: #767676">grey</p> <p style="color: black; opacity: .5">half</p>
        <p style="color: white; background: #0072B2">button</p>
        <button disabled style="color: #ccc">off</button>
        <input value="typed" style="color: #aaa; background: white">
        <svg width="99" height="20"><text y="15" fill="#D55E00">drawn</text></svg></div>
        <p>not ours</p></body>"""
    )
    found = {words: round(c, 1) for c, words in measure_contrast(page)}
    assert found == dict(grey=4.5, half=4.0, button=5.2, typed=2.3, drawn=3.9), found
    assert [text.split()[0] for text in check_contrast(page)] == ["'typed'", "'drawn'", "'half'"]
    page.close()


def test_check_layout(browser):  # noqa: F811
    "The check finds nothing in a good page, and each fault that is put into it."
    page = open_page(browser)
    page.add_script_tag(content=get_plotlyjs())
    for fault, said in FAULTS.items():
        page.evaluate('good => { document.body.innerHTML = good }', GOOD)
        page.evaluate(
            """() => Plotly.newPlot(
                figure, [{x: [1, 2], y: [1, 3]}], {width: 500, height: 300, title: {text: 'Two points'}})"""
        )
        assert check_layout(page) == []
        page.evaluate(f'async () => {{ {fault}; await new Promise(then => setTimeout(then, 100)) }}')
        assert any(said in problem for problem in check_layout(page)), (fault, check_layout(page))
    page.close()
