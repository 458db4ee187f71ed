"""Faults, many of them: what comes out is right, or one clear line.

Run by hand; docs/reliability.md has what it showed::

    python tests/faults.py fuzz --count 10000
    python tests/faults.py call --times 25
    python tests/faults.py call --times 12 --clock
    python tests/faults.py disk --times 20
    python tests/faults.py twice --times 6
    python tests/faults.py workers --times 6 --processes 2
"""
import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

TESTS = Path(__file__).resolve().parent
TOOLS = TESTS.parent / 'tools'
sys.path[:0] = map(str, (TESTS, TESTS / 'caching', TOOLS.parent,
                         TOOLS / 'experiments'))


def print_counts(title, counts):
    print(f'\n{title}')
    for row, number in sorted(counts.items()):
        print(f'{number:7}  ' + '  '.join(f'{cell:30}' for cell in row))


def fuzz(args, draw, folder):
    from fuzzing import AREAS, one_case
    counts = Counter()
    faults, began = [], time.process_time()
    for area in args.areas or AREAS:
        share, prepare = AREAS[area]
        (folder / area).mkdir()
        kinds = prepare(folder / area)
        for number in range(max(len(kinds), round(args.count * share))):
            kind = [*kinds][number % len(kinds)]
            draw.seed(f'{args.seed} {area} {number}')
            outcome, said = one_case(kinds[kind], draw)
            counts[area, kind, outcome] += 1
            if said:
                faults.append(f'{area}, {kind}, case {number}: {said}')
                print(f'{faults[-1]:.500}', flush=True)
    print_counts(f'{sum(counts.values())} inputs in '
                 f'{time.process_time() - began:.0f} s of CPU', counts)
    print(f'\n{len(faults)} failures')
    return bool(faults)


def start(command, log, **environment):
    with log.open('a') as file:
        return subprocess.Popen(
            [*map(str, command)], stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True, env=dict(
                os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable,
                PYTHONPATH=str(TOOLS.parent), **environment))


def seconds_to_finish(run, log):
    began = time.monotonic()
    if not alive_after(run, 1200) and run.returncode == 0:
        return time.monotonic() - began
    if run.returncode is None:
        os.killpg(run.pid, signal.SIGKILL)
    raise SystemExit(f'{run.returncode}: {log.read_text()[-2000:]}')


def alive_after(run, seconds):
    try:
        run.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def writing(folder):
    """Whether a file was left half written, just now and not before."""
    found = [path for path in folder.rglob('*.part')
             if not path.with_suffix('.seen').exists()]
    for path in found:
        path.with_suffix('.seen').touch()
    return 'in a write' if found else ''


def differing(one, two):
    """Weights that are not the same bit by bit in two checkpoints."""
    import torch

    from wsld_plugin.checkpoints import read_checkpoint
    first, second = (read_checkpoint(str(path))['state_dict']
                     for path in (one, two))
    return [key for key in {**first, **second}
            if key not in first or key not in second
            or not torch.equal(first[key], second[key])]


def write_pictures(folder):
    from wsld_plugin.datasets.digits import write_digits
    write_digits(folder)
    for one in folder.glob('*/*'):
        few = 8 if one.parent.name == 'train' else 3
        for path in sorted(one.iterdir())[few:]:
            path.unlink()


class Calls:
    """The one call on a few digits, in folders beside each other."""

    def __init__(self, folder):
        self.folder, self.counts, self.wrong = folder, Counter(), 0
        write_pictures(folder / 'digits')
        self.whole = seconds_to_finish(self.begin('whole'), self.log('whole'))
        print(f'uninterrupted: {self.whole:.0f} s', flush=True)

    def log(self, out):
        return self.folder / f'{out}.log'

    def begin(self, out, log='', **environment):
        return start([
            sys.executable, TOOLS / 'distil.py', '--data',
            self.folder / 'digits', '--teacher', 'resnet8@none', '--student',
            'resnet8', '--epochs', 2, '--tau', 4, '--alpha', 1,
            '--no-onnx', '--work-dir', self.folder / out
        ], self.log(log or out), **environment)

    def stage(self, out):
        return next((stage for end, stage in (
            ('student', '4 student'), ('teacher.pth', '3 after it'),
            ('teachers', '2 teacher'), ('call.json', '1 pictures'))
            if (self.folder / out / end).exists()), '0 start')

    def finish(self, out, run):
        seconds_to_finish(run, self.log(out))
        bad = differing(*(path for place in ('whole', out) for path in
                          (self.folder / place).glob('*-????????.pth')))
        self.wrong += bool(bad)
        print(f'{out}: {sum(self.counts.values())} faults so far, '
              f'{len(bad)} weights differ', flush=True)

    def report(self, title, students, wrong='not the uninterrupted one'):
        print_counts(title, self.counts)
        print(f'\n{students} students, {self.wrong} {wrong}')
        return bool(self.wrong)


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += atol(getenv("AHEAD"));
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return failed;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


def call(args, draw, folder):
    """Kills; with --clock, by gcc, each start at another time."""
    calls, clock, number = Calls(folder), folder / 'clock.so', 0
    if args.clock:
        subprocess.run(
            ['gcc', '-shared', '-fPIC', '-x', 'c', '-', '-o', clock, '-ldl'],
            input=CLOCK, text=True, check=True)

    def begin(out):
        days = draw.uniform(-9, 9)
        return calls.begin(out, **dict(
            LD_PRELOAD=str(clock), AHEAD=str(round(days * 86400))
        ) if args.clock else {})

    while sum(calls.counts.values()) < args.times:
        out = f'cut{number}'
        while alive_after(
                run := begin(out), draw.uniform(0, calls.whole)) and (
                    sum(calls.counts.values()) < args.times):
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            calls.counts[calls.stage(out), writing(folder / out)] += 1
        calls.finish(out, run)
        number += 1
    return calls.report('kills of the one call by stage', number)


def disk(args, draw, folder):
    """The disk is full at some byte, then larger; as root, on Linux."""
    calls = Calls(folder)
    needed = sum(path.stat().st_size for path in
                 (folder / 'whole').rglob('*') if path.is_file())
    for number in range(args.times):
        out = f'full{number}'
        place = folder / out
        place.mkdir()
        size = draw.randrange(4096, needed)
        mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none']
        subprocess.run([*mount, place], check=True)
        try:
            run = calls.begin(out)
            if not alive_after(run, 1200) and run.returncode:
                last = calls.log(out).read_text().splitlines()[-1]
                kind = ('one line' if 'No space left on device' in last
                        and last.startswith('distil.py: ') else last)
                calls.counts[calls.stage(out), kind] += 1
                calls.wrong += kind != 'one line'
            subprocess.run(['mount', '-o', 'remount,size=1G', place],
                           check=True)
            calls.finish(out, calls.begin(out))
        finally:
            subprocess.run(['umount', place], check=True)
    return calls.report('full disks by stage', args.times, 'faults')


def twice(args, draw, folder):
    """A second call in the same folder, at some moment of the first."""
    calls = Calls(folder)
    for number in range(args.times):
        out = f'two{number}'
        first = calls.begin(out)
        alive_after(first, draw.uniform(0, calls.whole) * draw.random())
        stage, second = calls.stage(out), calls.begin(out, f'{out}-2')
        alive_after(second, 1200)
        last = calls.log(f'{out}-2').read_text().splitlines()[-1]
        calls.counts[stage, f'{second.returncode}: {last}'] += 1
        calls.finish(out, first)
    return calls.report('second calls by stage of the first', args.times)


def workers(args, draw, folder):
    counts, wrong, number = Counter(), 0, 0

    def begin(out):
        return start([
            'bash', TOOLS / 'dist_train.sh',
            TESTS / 'tools' / 'tiny_distillation.py', args.processes,
            '--work-dir', folder / out, '--cfg-options',
            'train_dataloader.num_workers=0'
        ], folder / f'{out}.log', MAX_RESTARTS='9')

    def kill_one(run, out):
        # The launcher's children are the workers.
        found = Path(f'/proc/{run.pid}/task/{run.pid}/children')
        started = found.read_text().split()
        if not started:
            return
        rank = draw.randrange(len(started))
        os.kill(int(started[rank]), signal.SIGKILL)
        said = (folder / f'{out}.log').read_text().splitlines()
        steps = [line for line in said if 'Epoch(' in line]
        stage = 'before a checkpoint'
        if (folder / out / 'last_checkpoint').exists():
            stage = f"after {steps[-1].partition('Epoch')[2][:10]}"
        counts[stage, writing(folder / out), f'rank {rank}'] += 1

    whole = seconds_to_finish(begin('whole'), folder / 'whole.log')
    print(f'uninterrupted: {whole:.0f} s', flush=True)
    while sum(counts.values()) < args.times:
        out, run = f'cut{number}', begin(f'cut{number}')
        # Twice at most: torchrun starts all again each time.
        for _ in range(draw.randint(1, 2)):
            if sum(counts.values()) < args.times and alive_after(
                    run, draw.uniform(0.2, 1) * whole):
                kill_one(run, out)
        seconds_to_finish(run, folder / f'{out}.log')
        bad = differing(folder / 'whole' / 'epoch_3.pth',
                        folder / out / 'epoch_3.pth')
        print(f'{out}: {sum(counts.values())} kills so far, '
              f'{len(bad)} weights differ', flush=True)
        wrong, number = wrong + bool(bad), number + 1
    print_counts(f'kills of one of {args.processes} workers', counts)
    print(f'\n{number} trainings, {wrong} not the uninterrupted one')
    return bool(wrong)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for command in (fuzz, call, disk, twice, workers):
        sub = commands.add_parser(command.__name__)
        sub.set_defaults(command=command)
        sub.add_argument('--seed', type=int, default=0)
        if command is fuzz:
            sub.add_argument('--count', type=int, default=10_000)
            sub.add_argument('--areas', nargs='+')
        else:
            sub.add_argument('--times', type=int, default=25)
        if command is call:
            sub.add_argument('--clock', action='store_true')
        if command is workers:
            sub.add_argument('--processes', type=int, default=2)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        return args.command(args, Random(args.seed), Path(folder))


if __name__ == '__main__':
    sys.exit(main())
