"""One input and its judge, and ways to damage bytes."""
import contextlib
import io
import signal
import traceback
from collections.abc import Callable
from random import Random

Case = Callable[[Random], str]
RIGHT, REFUSED = 'right', 'refused'
# Of one input; a hang is a fault.
SECONDS = 60


class Fault(Exception):
    """Neither the right result nor one clear line."""


def expect(right, said):
    if not right:
        raise Fault(said)


def one_case(case, draw):
    """What came of an input, and what is wrong with that."""
    def ring(*_):
        raise Fault(f'no end after {SECONDS} s')

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return case(draw), ''
    except Exception as error:  # whatever a trace would show
        *_, last = traceback.extract_tb(error.__traceback__)
        return 'FAILED', (f'{type(error).__name__}: {error} '
                          f'({last.filename}:{last.lineno})')
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judged(errors, call, judge):
    """Refused by one of some errors in one line, or as judged."""
    try:
        found = call()
    except errors as error:
        said = str(error)
        expect(said and '\n' not in said, f'not one line: {said}')
        return REFUSED
    return judge(found)


def cut(data, draw):
    return data[:draw.randrange(len(data))]


def one_byte(data, draw):
    at = draw.randrange(len(data))
    new = (data[at] + draw.randint(1, 255)) % 256
    return data[:at] + bytes([new]) + data[at + 1:]


def zeroed(data, draw):
    at = draw.randrange(len(data))
    end = min(len(data), at + draw.choice([16, 512, 4096]))
    return data[:at] + bytes(end - at) + data[end:]


def appended(data, draw):
    return data + draw.randbytes(draw.choice([1, 64, 70_000]))


def noise(data, draw):
    start = data[:draw.choice([0, 1, 2, 4, 64])]
    return start + draw.randbytes(draw.randrange(300))


DAMAGES = dict(cut=cut, changed=one_byte, zeroed=zeroed, appended=appended,
               noise=noise)
