"""What may befall a run, and whether it goes on to the same bits: `python tests/faults.py [--kills 30]`.

Kills by the clock (SIGKILL at evenly spread moments of a run), five signals in mid-run, and full disks
(small file systems in memory, which only root may mount). Prints a table; ends with 1 if anything went
otherwise than it should."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

from kills import check_same

from nested_learning.config.load import load_config
from nested_learning.data.datasets import load_dataset
from nested_learning.runs.finished import Run
from nested_learning.runs.folder import is_held, lock_of
from nested_learning.runs.grid import run_or_resume
from nested_learning.train.checkpoints import list_checkpoints
from nested_learning.train.learner import StepDone

SMALL = dict(
    method='consolidated',
    network='mlp',
    base_channels=64,
    image_size=[16, 16],
    batch_size=20,
    learning_rate=0.01,
    memory_size=50,
    device='cpu',
    threads=1,
    checkpoint_every=10,
)
MIDDLE = 45  # [steps] of 76, when a signal arrives or the disk fills up
SIGNALS = {  # name -> how the process ends, the run's status, [steps] of its newest checkpoint
    'SIGINT': (130, 'stopped', MIDDLE),  # finishes its step, writes a checkpoint, says how to go on
    'SIGTERM': (128 + signal.SIGTERM, 'stopped', MIDDLE),
    'SIGHUP': (128 + signal.SIGHUP, 'stopped', MIDDLE),
    'SIGQUIT': (-signal.SIGQUIT, 'running', 40),  # dies at once; the checkpoint before is whole
    'SIGKILL': (-signal.SIGKILL, 'running', 40),
}


def begin(task):
    "Begin a task in a child process; give its id."
    child = os.fork()
    if child:
        return child
    code = 1
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell lets what it starts in the background ignore it
    try:
        sys.stdout = open(os.devnull, 'w')
        task()
        code = 0
    except SystemExit as e:
        code = e.code
    except KeyboardInterrupt:
        code = 130
    except BaseException as e:
        print(f'    {type(e).__name__}: {e}', file=sys.stderr, flush=True)
    os._exit(code)


def end(child):
    "Wait for a child process; give how it ended."
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def go(place, then=None):
    "Run, or go on, up to the end; `then` is called after the step in the middle."

    def listen(event):
        if isinstance(event, StepDone) and event.step == MIDDLE:
            then()

    from nested_learning.runs import experiment

    config = load_config(**SMALL, run_dir=str(place))
    if then:
        experiment.run(config, listeners=[listen], progress=False)
    else:
        run_or_resume(config, progress=False)


def goes_on(place, whole):
    "Does a run go on to the same bits, and leave nothing behind?"
    same = end(begin(lambda: go(place))) == 0 and end(begin(lambda: check_same(place, whole))) == 0
    return same and not list(place.glob('.*.part')) and not is_held(lock_of(place))


def say(kind, what, seen, right):
    "Print a row of the table; give whether something was wrong."
    print(f'{kind:12} {what:26} {seen:66} {"as it should" if right else "WRONG"}', flush=True)
    return not right


def wait_for(path):
    while not path.exists():
        time.sleep(0.005)


def kill_by_clock(folder, whole, seconds, kills):
    "Kill runs at moments spread over the time from their first file to their end."
    wrong = 0
    for i in range(kills):
        place = folder / f'clock-{i}'
        moment = seconds * (i + 0.5) / kills
        child = begin(lambda: go(place))
        wait_for(place / 'config.yaml')
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        ended = end(child)
        begun = (place / 'run.json').is_file()
        newest = max(list_checkpoints(place), default=0) if begun else None
        where = 'before its first file' if newest is None else f'newest checkpoint {newest}'
        how = 'killed' if ended == -signal.SIGKILL else 'had ended'
        same = goes_on(place, whole)
        seen = f'{how}, {where}; {"resumed to the same" if same else "NOT the same"}'
        wrong += say('clock', f'{moment:.2f} of {seconds:.2f} s', seen, same)
    return wrong


def send_signals(folder, whole):
    "Send each signal in the middle of a run."
    wrong = 0
    for name, expected in SIGNALS.items():
        place = folder / name
        ended = end(begin(lambda: go(place, lambda: os.kill(os.getpid(), getattr(signal, name)))))
        found = (ended, Run(place).info['status'], max(list_checkpoints(place)))
        same = goes_on(place, whole)
        seen = f'exit {found[0]}, {found[1]}, checkpoint {found[2]}; '
        seen += 'resumed to the same' if same else 'NOT the same'
        wrong += say('signal', name, seen, same and found == expected)
    return wrong


@contextmanager
def disk(place, size):
    "Mount a file system in memory, of a size in bytes."
    place.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', place], check=True)
    try:
        yield
    finally:
        subprocess.run(['umount', place], check=True)


def fill_disks(folder, whole):
    "Run where there is too little room, or where it runs out in mid-run."
    held = sum(path.stat().st_size for path in whole.iterdir())
    sizes = {'a quarter of the run fits': held // 4, 'it all but fits': 9 * held // 10, 'it fits': 4 * held}
    wrong = 0
    for i, (what, size) in enumerate(sizes.items()):
        mounted = folder / f'disk-{i}'
        with disk(mounted, size):
            ballast = mounted / 'ballast'

            def fill():
                "Leave no byte, as other programs would."
                try:
                    with open(ballast, 'wb') as f:
                        while True:
                            f.write(bytes(4096))
                            f.flush()
                except OSError:
                    pass

            place = mounted / 'run'
            ended = end(begin(lambda: go(place, fill if what == 'it fits' else lambda: None)))
            status = Run(place).info['status'] if place.exists() else 'refused before it began'
            ballast.unlink(missing_ok=True)
            subprocess.run(['mount', '-o', f'remount,size={4 * held}', mounted], check=True)
            same = goes_on(place, whole)
            seen = f'exit {ended}, {status}; {"then resumed to the same" if same else "NOT the same"}'
            wrong += say('full disk', f'{what} ({size // 1000} kB)', seen, same and ended == 1)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=30, help='kills by the clock')
    asked = parser.parse_args()
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        whole = folder / 'whole'
        load_dataset('digits')  # what it imports, children need not import
        child = begin(lambda: go(whole))
        wait_for(whole / 'config.yaml')
        start = time.perf_counter()
        assert end(child) == 0
        seconds = time.perf_counter() - start
        wrong = kill_by_clock(folder, whole, seconds, asked.kills) + send_signals(folder, whole)
        if os.geteuid() == 0:
            wrong += fill_disks(folder, whole)
        else:
            print('full disks were not tried: only root may mount')
    print('all as it should be' if not wrong else f'{wrong} WRONG')
    sys.exit(wrong > 0)


if __name__ == '__main__':
    main()
