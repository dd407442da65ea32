"""ImageNet at 256 pixels end to end on a CPU: an archive of that form is downloaded from a local server in
the role of Kaggle, unpacked, split into tasks and learned."""

import io
import sys
import types
from zipfile import ZipFile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from nested_learning.data.imagenet256 import setup
from nested_learning.runs.commands import run_one
from nested_learning.runs.finished import Run

CLASSES, IMAGES, SIDE = 20, 6, 256
KEYS = dict(
    num_tasks=5,
    classes_per_task=4,
    base_channels=4,
    gradient_checkpointing='true',
    num_cms_levels=2,
    periods='[1,2]',
    ood_ratio=0,
    method='nested_er',
    inner='SGD',
    learning_rate=0.05,
    batch_size=10,
    memory_size=30,
    num_workers=2,
    dataset_options='{in_memory: false}',
    device='cpu',
)


@pytest.fixture
def kaggle(notebooks, monkeypatch):
    "The local server of the notebook on Kaggle's client."
    module = types.ModuleType('kaggle_notebook')
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for cell in notebooks['15_kaggle.ipynb']:
        if cell.code:
            exec(cell.source, module.__dict__)
            if hasattr(module, 'serve'):
                return module.serve
    raise AssertionError('15_kaggle.ipynb: has no function serve')


def make_archive() -> bytes:
    "A ZIP file with a folder of JPEGs for each class; a class is a grating of its own direction and hue."
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    archive = io.BytesIO()
    with ZipFile(archive, 'w') as file:
        for label in range(CLASSES):
            angle = np.pi * label / CLASSES
            for number in range(IMAGES):
                phase = 40 * (rows * np.cos(angle) + columns * np.sin(angle)) + rng.uniform(0, 6)
                colors = [np.sin(phase + label * shift) for shift in (0, 1, 2)]
                pixels = 127 + 60 * np.stack(colors, 2) + rng.normal(0, 20, (SIDE, SIDE, 3))
                jpeg = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(jpeg, 'JPEG')
                file.writestr(f'{label:02}/{number:05}.jpg', jpeg.getvalue())
    return archive.getvalue()


def call(command, *words):
    done = CliRunner().invoke(command, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_from_download_to_accuracies(kaggle, tmp_path):
    content = make_archive()
    data, run = tmp_path / 'data', tmp_path / 'run'
    with kaggle(content=content, told=content, cuts=[len(content) // 2]) as server:
        said = call(setup, 'imagenet256', '--dataset', 'tester/tiny', '--data-dir', data)
        assert f'{CLASSES} classes, {CLASSES * IMAGES} images' in said
        assert len(server['ranges']) == 2  # resumed after the cut
    (tmp_path / 'config.yaml').write_text('dataset_name: ImageNet256\n')
    keys = [f'{key}={value}' for key, value in {**KEYS, 'data_dir': data, 'run_dir': run}.items()]
    call(run_one, tmp_path / 'config.yaml', *keys)
    made = Run(run)
    made.stream.assert_single_pass()
    assert [len(task) for task in made.stream.task_classes] == [4] * 5
    assert made.R.shape == (5, 5) and np.isfinite(made.R[np.tril_indices(5)]).all()
    seconds = made.cost['seconds']
    assert seconds['fetch'] < 0.05 * seconds['train']  # the network takes the time, not the decoding
