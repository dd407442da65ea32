"""Film the cockpit for README: a run in a real browser, from Play to its end.

Run `python tests/film.py`. It writes nbs/images/cockpit.gif, and nbs/images/cockpit.png of the same run at
its end. It takes a minute or two, and needs the extra `dev` and a Chromium on the PATH.

Look at both pictures before you commit them."""

import argparse
import io
import itertools
import tempfile
from pathlib import Path

from browser import (
    FLAGS,
    VOILA,
    find_chromium,
    open_app,
    open_page,
    press,
    read_status,
    start_server,
    stop_server,
    wait_for_status,
)
from conftest import ROOT
from PIL import Image, ImageChops
from playwright.sync_api import sync_playwright

from nested_learning.core import write_atomic

WINDOW = dict(width=1200, height=900)  # [pixels]
WIDTH = 900  # [pixels] of the film
SPEED = '10'  # [steps/s] of the run, so that the figures follow every few steps
FRAME = 220  # [ms]
PAUSE = 1500  # [ms] for the first frame
REST = 4000  # [ms] for the last frame
SHOTS = 150  # at most
COLOURS = 200
NEARLY_WHITE = 240  # of 255
LIMIT = 3_000_000  # [bytes]


def find_panel(page):
    "Scroll to the panel; return the part of the window with bar, figures and controls."
    return page.evaluate("""() => {
        const box = selector => document.querySelector(selector).getBoundingClientRect();
        document.querySelector('.nl-bar').scrollIntoView();
        const top = Math.max(Math.floor(box('.nl-bar').top) - 6, 0);
        const bottom = Math.min(Math.ceil(box('.nl-figures').bottom) + 6, innerHeight);
        return {x: 0, y: top, width: innerWidth, height: bottom - top};
    }""")


def shoot(page, clip=None):
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert('RGB')


def wait_until_still(page, quiet=4):
    "Wait until some pictures of the page, a second apart, are equal."
    before, equal = shoot(page), 0
    for _ in range(SHOTS):
        page.wait_for_timeout(1000)
        now = shoot(page)
        equal = 0 if ImageChops.difference(now, before).getbbox() else equal + 1
        if equal == quiet:
            return
        before = now
    raise RuntimeError(f'the page still moves after {SHOTS} pictures')


def film(page):
    "Press Play; return a frame for each change of the panel, and a picture of the end."
    clip = find_panel(page)
    page.locator('.nl-bar select').select_option(SPEED)
    wait_until_still(page)
    frames = [shoot(page, clip)]
    press(page, 'Play')
    wait_for_status(page, 'playing')
    for _ in range(SHOTS):
        status = read_status(page)
        frame = shoot(page, clip)
        if ImageChops.difference(frame, frames[-1]).getbbox():
            frames.append(frame)
        if 'finished' in status:
            break
        page.wait_for_timeout(300)
    else:
        raise RuntimeError(f'the run did not end within {SHOTS} pictures: {status}')
    wait_until_still(page)
    last = shoot(page, clip)
    return [*frames, last], last


def reduce(frames):
    "Scale the frames, and give all of them one palette: a part that does not change is stored once."
    height = round(frames[0].height * WIDTH / frames[0].width)
    small = [frame.resize((WIDTH, height), Image.Resampling.LANCZOS) for frame in frames]
    sheet = Image.new('RGB', (WIDTH, height * 3))
    for k, frame in enumerate((small[0], small[len(small) // 2], small[-1])):
        sheet.paste(frame, (0, height * k))
    palette = sheet.quantize(COLOURS, Image.Quantize.MEDIANCUT)
    colours = palette.getpalette()
    for k in range(0, len(colours), 3):
        if min(colours[k : k + 3]) >= NEARLY_WHITE:
            colours[k : k + 3] = 255, 255, 255  # the background, of which the cut makes a light grey
    palette.putpalette(colours)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in small]


def save_film(frames, path):
    "Write an animated GIF that runs for ever."
    reduced = reduce(frames)
    times = [PAUSE, *itertools.repeat(FRAME, len(reduced) - 2), REST]
    with write_atomic(path) as temporary:
        reduced[0].save(
            temporary,
            format='GIF',
            save_all=True,
            append_images=reduced[1:],
            duration=times,
            loop=0,
            optimize=True,
        )
    if path.stat().st_size > LIMIT:
        raise RuntimeError(f'{path}: has {path.stat().st_size} bytes; must have at most {LIMIT}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--out', type=Path, default=ROOT / 'nbs/images', help='folder of the pictures')
    parser.add_argument('--frames', type=Path, help='folder for each frame as a picture of its own')
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, sync_playwright() as driver:
        server = start_server(Path(home), *VOILA)
        chromium = driver.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        try:
            page = open_page(chromium)
            page.set_viewport_size(WINDOW)
            open_app(page, f'{server.url}/voila/render/explore/cockpit.ipynb?theme=light')
            page.wait_for_function(
                """() => {
                    const figures = [...document.querySelectorAll('.nl-figures .js-plotly-plot')];
                    return figures.length && figures.every(figure => figure.data.length);
                }""",
                timeout=120_000,
            )
            frames, last = film(page)
            problems = page.problems
        finally:
            chromium.close()
            stop_server(server)
    if problems:
        raise RuntimeError('\n'.join(problems))
    if chosen.frames:
        chosen.frames.mkdir(parents=True, exist_ok=True)
        for k, frame in enumerate(frames):
            frame.save(chosen.frames / f'{k:03}.png')
    save_film(frames, chosen.out / 'cockpit.gif')
    with write_atomic(chosen.out / 'cockpit.png') as temporary:
        last.quantize(256).save(temporary, format='PNG', optimize=True)
    print(f'{len(frames)} frames in {chosen.out / "cockpit.gif"}')


if __name__ == '__main__':
    main()
