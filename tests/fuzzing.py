"""Generated inputs, right and wrong, and who judges what comes of them.

An area names its kinds of inputs. Each is a function of a random generator
that makes one input, gives it to the product and says in a word what came of
it; it raises where that is neither the right result nor one clear line.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import pickle
import random
import signal
import struct
import traceback
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import cv2
import loss_tester
import numpy as np
import oracle
import stored
import torch
import yaml
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MMLogger
from PIL import Image
from torch.utils import _pytree

from wsld_plugin import command_line, config
from wsld_plugin.caching import TeacherCacheError
from wsld_plugin.caching.record import decode, unpack
from wsld_plugin.caching.storage import MANIFEST, ROWS, TeacherCache
from wsld_plugin.checkpoints import CheckpointError, read_checkpoint
from wsld_plugin.datasets import read_folder
from wsld_plugin.losses import WSLDLoss

Case = Callable[[Random], str]
RIGHT, REFUSED = 'right', 'refused'
# Of one input; a hang is a fault.
SECONDS = 60


class Fault(Exception):
    """Neither the right result nor one clear line."""


def expect(right: object, said: str) -> None:
    if not right:
        raise Fault(said)


def one_case(case: Case, draw: Random) -> tuple[str, str]:
    """What came of an input, and what is wrong with that."""
    def ring(*_: object) -> None:
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


def judged(errors: Any, call: Callable[[], Any],
           judge: Callable[[Any], str]) -> str:
    """Refused by one of some errors in one line, or as judged."""
    try:
        found = call()
    except errors as error:
        said = str(error)
        expect(said and '\n' not in said, f'not one line: {said}')
        return REFUSED
    return judge(found)


# ---------------------------------------------------------------- bytes
def cut(data: bytes, draw: Random) -> bytes:
    return data[:draw.randrange(len(data))]


def one_byte(data: bytes, draw: Random) -> bytes:
    at = draw.randrange(len(data))
    new = (data[at] + draw.randint(1, 255)) % 256
    return data[:at] + bytes([new]) + data[at + 1:]


def zeroed(data: bytes, draw: Random) -> bytes:
    at = draw.randrange(len(data))
    end = min(len(data), at + draw.choice([16, 512, 4096]))
    return data[:at] + bytes(end - at) + data[end:]


def appended(data: bytes, draw: Random) -> bytes:
    return data + draw.randbytes(draw.choice([1, 64, 70_000]))


def noise(data: bytes, draw: Random) -> bytes:
    start = data[:draw.choice([0, 1, 2, 4, 64])]
    return start + draw.randbytes(draw.randrange(300))


DAMAGES = dict(cut=cut, changed=one_byte, zeroed=zeroed, appended=appended,
               noise=noise)


# ---------------------------------------------------------------- the loss
def laid_out(value: torch.Tensor, draw: Random) -> torch.Tensor:
    """The same values in another order, with gaps, or not from the start."""
    return draw.choice([
        lambda: value,
        lambda: value.transpose(0, 1).contiguous().transpose(0, 1),
        lambda: torch.stack([value, value], -1)[..., 1],
        lambda: torch.cat([value.flatten()] * 2)[value.numel():].view(
            value.shape)
    ])() if value.dim() > 1 else value


def loss_inputs(draw: Random, kind: str) -> tuple[dict, list, int]:
    """Settings, student, teacher and labels, and the index to ignore."""
    shape = (draw.randint(0, 4), draw.randint(1, 9),
             *(draw.randint(1, 3) for _ in range(draw.randint(0, 2))))
    seed, soft = draw.getrandbits(31), kind == 'probabilities'
    scale = 10**draw.uniform(-2, 2)
    student, teacher, labels = loss_tester.make(shape, seed, scale=scale,
                                                soft=soft)
    ignore = draw.choice([-100, -1, 255])
    student, teacher = (
        value.detach().to(draw.choice([*loss_tester.TOLERANCES])).clone()
        for value in (student, teacher))
    if not soft:
        one = torch.nn.functional.one_hot(labels, shape[1]).movedim(-1, 1)
        if kind == 'masked classes':
            out = (one.roll(1, 1) * (1 - one)).bool()
            student, teacher = (value.masked_fill(out, -math.inf)
                                for value in (student, teacher))
        if kind == 'ignored rows':
            gone = torch.rand(labels.shape) < 0.4
            student, teacher = (
                value.masked_fill(gone.unsqueeze(1), draw.choice(
                    [math.nan, math.inf, -math.inf, 0.0]))
                for value in (student, teacher))
            labels = labels.masked_fill(gone, ignore)
        kinds = [torch.int64, torch.int32, torch.int16, torch.int8,
                 torch.uint8]
        kinds = [kind for kind in kinds
                 if torch.equal(labels.to(kind).long(), labels)]
        labels = labels.to(draw.choice(kinds))
    settings = dict(
        tau=draw.choice([0.5, 1.0, 2, 7.5]), loss_weight=draw.choice([1, 2.5]),
        eps=draw.choice([0.0, 1e-7]), ignore_index=ignore,
        reduction=draw.choice(['none', 'mean', 'sum']))
    if draw.random() < 0.3:
        settings.update(weighting='uniform', eps=0.0)
    return settings, [laid_out(value, draw)
                      for value in (student, teacher, labels)], ignore


def right_loss(kind: str, draw: Random) -> str:
    settings, (student, teacher, labels), ignore = loss_inputs(draw, kind)
    student = student.requires_grad_()
    value = WSLDLoss(**settings)(student, teacher, labels)
    value.sum().backward()
    tau, weight = settings['tau'], settings['loss_weight']
    w = 1.0 if 'weighting' in settings else None
    rows, count = [], max(1, len([*filter(None, loss_tester.targets_of(
        labels, student.shape[1], ignore))]))
    for s, t, y in zip(*(loss_tester.rows_of(x.clamp(min=-1e300) if
                                             x.dtype == torch.float64 else x)
                         for x in (student, teacher)),
                       loss_tester.targets_of(labels, student.shape[1],
                                              ignore)):
        s, t = ([max(z, -1e300) for z in x] for x in (s, t))
        rows.append((0.0, [0.0] * len(s)) if y is None else oracle.row(
            s, t, y, tau, settings['eps'], w))
    exact = torch.tensor([v for v, _ in rows], dtype=torch.float64) * weight
    slopes = torch.tensor([g for _, g in rows], dtype=torch.float64) * weight
    if settings['reduction'] == 'mean':
        exact, slopes = exact / count, slopes / count
    got = value.detach().double().flatten()
    if settings['reduction'] != 'none':
        exact = exact.sum().view(1)
    unit = 2e-16 if student.dtype == teacher.dtype == torch.float64 else 1e-7
    top = max([1.0, *(abs(z) for x in (student, teacher)
                      for row in loss_tester.rows_of(x) for z in row
                      if math.isfinite(z))])
    # Rounding of logits that large, in the exponent of each probability.
    near = unit * (16 + 8 * top) * tau * weight
    bound = near * (exact.abs().max().item() / tau / weight + tau + top
                    if len(exact) else 0) * max(1, len(rows))
    expect(len(got) == len(exact) and ((got - exact).abs() <= bound).all(),
           f'{got.tolist()}, expected {exact.tolist()} by {bound}')
    grad = student.grad.double().movedim(1, -1).flatten(0, -2)
    slopes = slopes.view(grad.shape)
    half = loss_tester.TOLERANCES[student.dtype][1]
    bound = near + half * slopes.abs() + 6e-8
    expect(((grad - slopes).abs() <= bound).all(),
           f'gradient {grad.tolist()}, expected {slopes.tolist()}')
    return RIGHT


BAD_SETTINGS = [
    *(('tau', value) for value in (0, -1, math.nan, math.inf, '2', None)),
    *(('eps', value) for value in (-1, math.nan, 'x', None, [0])),
    *(('loss_weight', value) for value in (math.nan, 'x', None)),
    *(('reduction', value) for value in ('avg', None, 3, ['mean'])),
    *(('ignore_index', value) for value in (1.5, '0', None)),
    *(('num_classes', value) for value in (99, 0, 'x', 2.5)),
    *(('weighting', value) for value in ('x', None, {}, {'other': 1})),
]


def wrong_loss(kind: str, draw: Random) -> str:
    settings, tensors, _ = loss_inputs(draw, 'indices')
    student, teacher, labels = tensors
    if kind == 'wrong setting':
        settings.update([draw.choice(BAD_SETTINGS)])
    elif kind == 'label out of range':
        labels = torch.cat([labels, labels[:1]]) if len(labels) else (
            torch.zeros(1, *labels.shape[1:]))
        student, teacher = (torch.randn(len(labels), *x.shape[1:])
                            for x in (student, teacher))
        labels = labels.long().clone()
        labels.view(-1)[draw.randrange(labels.numel())] = draw.choice(
            [student.shape[1], -2, 10**6, -2**62])
    elif kind == 'wrong labels':
        labels = draw.choice([
            torch.stack([labels] * 2, -1), torch.cat([labels, labels[:1] * 0,
                                             labels.new_zeros(
                                                 1, *labels.shape[1:])]),
            labels.bool(), labels.to(torch.complex64), labels.double(),
            labels.tolist(), None, labels.numpy(),
            student.double().softmax(1) - 2 if len(student) else None])
    else:
        bad = draw.choice([
            student[:, :1].expand(-1, 11, *student.shape[2:]), student.long(),
            student.bool(), student.to(torch.complex64), student[:, 0],
            student[:, :0], student.tolist(), None,
            torch.cat([student, student[:1] * 0, student.new_zeros(
                1, *student.shape[1:])])])
        student, teacher = draw.choice([(bad, teacher), (student, bad)])
    return judged((TypeError, ValueError),
                  lambda: WSLDLoss(**settings)(student, teacher, labels),
                  partial(expect, False))


def losses(folder: Path) -> dict[str, Case]:
    del folder
    return {
        **{kind: partial(right_loss, kind) for kind in (
            'indices', 'probabilities', 'ignored rows', 'masked classes')},
        **{kind: partial(wrong_loss, kind) for kind in (
            'wrong setting', 'label out of range', 'wrong labels',
            'wrong logits')}
    }


# ---------------------------------------------------------------- checkpoints
def same(one: Any, two: Any) -> bool:
    leaves, others = map(_pytree.tree_flatten, (one, two))
    return str(leaves[1]) == str(others[1]) and all(
        a.dtype == b.dtype and torch.equal(a, b) if isinstance(
            a, torch.Tensor) else repr(a) == repr(b)
        for a, b in zip(leaves[0], others[0]))


class Code:
    """A pickle of it calls something."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call[0], self.call[1:]


def other_pickle(path: Path, mark: Path, draw: Random) -> None:
    tensor = torch.zeros(2)
    call = draw.choice([
        Code(os.system, f'touch {mark}'), Code(open, str(mark), 'w'),
        Code(eval, f'open({str(mark)!r}, "w")'), Code(Path.touch, mark),
        Code(getattr, Code(__import__, 'os'), 'system'),
        Code(getattr, HistoryBuffer, '__init__'), Code(np.load, str(path)),
        Code(torch.load, str(path)), random.Random(1), path, judged, int])
    content = draw.choice([
        call, [call], {'state_dict': call}, {'state_dict': {'a': call}},
        {'state_dict': {'a': tensor}, 'meta': call}, tensor, [tensor], None,
        3, 'text', {}, {'a': 1}, {'state_dict': {'a': 1}}, {1: 'x'},
        {'state_dict': None},
        {'state_dict': [tensor]}, {'a\nb': 'x'}, np.zeros(3), {('a', ): {}},
        {'state_dict': {3: tensor, 'b': np.zeros(2)}}])
    with path.open('wb') as file:
        draw.choice([
            partial(torch.save, content, file),
            partial(torch.save, content, file,
                    _use_new_zipfile_serialization=False),
            partial(pickle.dump, content, file,
                    draw.randint(0, pickle.HIGHEST_PROTOCOL))])()


def checkpoints(folder: Path) -> dict[str, Case]:
    path, mark = folder / 'file.pth', folder / 'mark'
    generator = torch.Generator().manual_seed(0)
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    kept = dict(
        meta=dict(epoch=3, iter=21, seed=1),
        state_dict={
            'conv.weight': torch.randn(8, 3, 3, 3, generator=generator),
            'bn.num_batches_tracked': torch.tensor(7),
            'fc.weight': torch.randn(10, 8, generator=generator).half()},
        optimizer=dict(state={0: dict(m=torch.ones(8, 3))}, groups=[0]),
        message_hub=dict(runtime_info=dict(lr=0.1), log_scalars=dict(
            loss=history)))
    whole = []
    for new in (True, False):
        torch.save(kept, path, _use_new_zipfile_serialization=new)
        whole.append(path.read_bytes())
    right = read_checkpoint(str(path))

    def damaged(data: bytes, damage: Callable, draw: Random) -> str:
        path.write_bytes(damage(data, draw))
        # The old format has no checksum: other numbers cannot be seen.
        return judged(CheckpointError, lambda: read_checkpoint(str(path)),
                      partial(judge, data is whole[0]))

    def judge(sealed: bool, found: Any) -> str:
        if same(found['state_dict'], right['state_dict']):
            return RIGHT
        expect(not sealed, 'silently other tensors')
        return 'other numbers, no checksum'

    def pickled(draw: Random) -> str:
        other_pickle(path, mark, draw)
        said = judged(CheckpointError, lambda: read_checkpoint(str(path)),
                      lambda found: 'weights' if all(isinstance(
                          value, torch.Tensor) for value in found[
                              'state_dict'].values()) else expect(
                                  False, f'took {found}'))
        expect(not mark.exists(), 'code was run')
        return said

    return {
        **{f'{format}, {name}': partial(damaged, data, damage)
           for format, data in zip(('zip', 'old'), whole)
           for name, damage in DAMAGES.items()},
        'other pickle': pickled, 'other pickle again': pickled}


# ---------------------------------------------------------------- caches
def caches(folder: Path) -> dict[str, Case]:
    kinds: dict[str, Case] = {}
    for name, top_k in (('all classes', None), ('top 3', 3)):
        logits, labels = stored.confident(12)
        place = folder / name
        cache = stored.store(place, logits, labels, top_k)
        files = {file: (place / file).read_bytes()
                 for file in (MANIFEST, ROWS)}
        rows = cache.rows(range(len(cache)))
        right = decode(unpack(rows, torch.device('cpu')), 12)
        expect(torch.allclose(right.softmax(1).gather(1, labels[:, None]),
                              logits.softmax(1).gather(1, labels[:, None]),
                              atol=1e-5), 'the cache itself')

        def damaged(place: Path, files: dict, right: torch.Tensor, file: str,
                    damage: Callable, draw: Random) -> str:
            for other, data in files.items():
                (place / other).write_bytes(data)
            if damage is swapped:
                size = len(files[ROWS]) // len(right)
                data = swapped(files[ROWS], draw, size)
            else:
                data = damage(files[file], draw)
            (place / file).write_bytes(data)
            chosen = draw.sample(range(len(right)), 40)

            def read() -> torch.Tensor:
                return decode(unpack(TeacherCache(place).rows(chosen),
                                     torch.device('cpu')), 12)

            def judge(found: torch.Tensor) -> str:
                expect(torch.equal(found, right[chosen]),
                       'silently other logits')
                return RIGHT

            return judged(TeacherCacheError, read, judge)

        kinds.update({
            f'{name}: {file} {what}': partial(damaged, place, files, right,
                                              file, damage)
            for file in files for what, damage in {
                **DAMAGES, 'rows swapped': swapped}.items()})
    return kinds


def swapped(data: bytes, draw: Random, size: int = 1) -> bytes:
    one, two = sorted(draw.sample(range(len(data) // size), 2))
    rows = [data[at:at + size] for at in range(0, len(data), size)]
    rows[one], rows[two] = rows[two], rows[one]
    return b''.join(rows)


# ---------------------------------------------------------------- pictures
def huge(data: bytes, draw: Random) -> bytes:
    """A PNG whose header tells of more pixels than it has."""
    sizes = struct.pack('>II', *(draw.choice([
        draw.randint(100, 2000), draw.randint(2**15, 2**31 - 1)])
        for _ in range(2)))
    header = b'IHDR' + sizes + data[24:29]
    return data[:12] + header + struct.pack('>I', zlib.crc32(header)) + (
        data[33:])


NAMES = ('x.txt', 'x', 'X.JPEG', ' x.png', 'x .png', 'x\ny.png', 'x\r.png',
         '.x.png', 'ü.png', 'u\u0308.png', 'x.png.part', '-x.png', '#x 1.png',
         'x' * 251 + '.png', '\udcff.png', '"x",1.png', '\u2028.png', "x'.png")


def pictures(folder: Path) -> dict[str, Case]:
    draw = np.random.RandomState(0)
    root = folder / 'pictures'
    for place in ('a', 'b', 'a/deep'):
        (root / place).mkdir(parents=True)
    for name in ('a/1', 'a/2', 'a/3', 'b/1', 'b/2', 'b/3'):
        cv2.imwrite(f'{root / name}.png', draw.randint(0, 255, (9, 9, 3)))
    image = Image.fromarray(cv2.GaussianBlur(draw.randint(
        0, 255, (40, 30, 3)).astype('uint8'), (9, 9), 0))
    whole = {}
    for kind in ('PNG', 'JPEG', 'BMP', 'WEBP', 'TIFF', 'GIF'):
        stream = io.BytesIO()
        image.save(stream, kind)
        whole[kind] = stream.getvalue()

    def pixels(data: bytes) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(data, 'u1'), cv2.IMREAD_COLOR)

    def look(path: Path, data: bytes | None, sealed: bool = False) -> str:
        """Scan with that one more; it is used or left out with a reason."""
        if data is not None:
            path.write_bytes(data)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                found = read_folder(root)
        finally:
            path.unlink()
        name = os.path.relpath(path, root)
        name = name.encode(errors='backslashreplace').decode()
        used = [one for split in found.splits.values() for one, _ in split]
        why = [why for one, why in found.left_out if one == name]
        expect(len(used) + len(found.left_out) == 7, 'a picture was lost')
        expect(used.count(name) + len(why) == 1, f'neither in nor out: {why}')
        if why:
            expect(why[0] and '\n' not in why[0], f'not one line: {why[0]}')
            return 'left out'
        return RIGHT if sealed is None else kind_of(data, sealed)

    def kind_of(data: bytes, sealed: bool) -> str:
        now = pixels(data)
        if any(np.array_equal(now, pixels(one)) for one in whole.values()):
            return RIGHT
        expect(not sealed, 'silently other pixels')
        return 'other pixels, no checksum'

    def damaged(kind: str, damage: Callable, draw: Random) -> str:
        # A PNG has checksums; of the others only an end can be missed.
        sealed = kind == 'PNG' or (damage is cut and kind == 'JPEG')
        return look(root / 'a' / 'x.png', damage(whole[kind], draw), sealed)

    def renamed(draw: Random) -> str:
        place = root / draw.choice(['a', 'b', 'a/deep', '.'])
        return look(place / draw.choice(NAMES), whole[draw.choice([*whole])])

    def no_file(draw: Random) -> str:
        path = root / draw.choice(['a', 'b']) / 'x.png'
        draw.choice([partial(os.mkfifo, path), partial(
            path.symlink_to, draw.choice([root / 'nothing', path, root])),
            partial(path.write_bytes, b'')])()
        return look(path, None, None)

    return {
        **{f'{kind} {name}': partial(damaged, kind, damage)
           for kind in whole for name, damage in DAMAGES.items()},
        'PNG huge': partial(damaged, 'PNG', huge),
        'renamed': renamed, 'no file, empty, a link': no_file}


# ---------------------------------------------------------------- configs
@contextlib.contextmanager
def plain(draw: Random) -> Iterator[None]:
    """Mostly without yapf, which lays each config out in half a second."""
    with patch.object(Config, 'pretty_text', property(
            lambda self: repr(self.to_dict()))) if draw.random() < 0.95 else (
                contextlib.nullcontext()):
        yield


VALUES = (None, '', 'text', 3, -1, 0.5, [], {}, True, [1], {'a': 1}, 'type',
          [{}], float('nan'), 10**20, {'type': 'text'})


def places(part: Any) -> list[tuple[Any, Any]]:
    """Each container with each of its keys."""
    keys = [*part] if isinstance(part, dict) else (
        range(len(part)) if isinstance(part, list) else [])
    return [(part, key) for key in keys] + [
        place for key in keys for place in places(part[key])]


def removed(part: Any, key: Any, draw: Random) -> None:
    del part[key]


def retyped(part: Any, key: Any, draw: Random) -> None:
    part[key] = draw.choice(VALUES)


def misspelt(part: Any, key: Any, draw: Random) -> None:
    if isinstance(part, list):
        key, part = draw.choice(places(part) or [(0, part)])[::-1]
    if not isinstance(part, dict) or not key:
        return retyped(part, key, draw)
    at = draw.randrange(len(key))
    value, letter = part.pop(key), draw.choice(['', 'e', '_', key[at] * 2])
    part[key[:at] + letter + key[at + 1:]] = value
    return None


CHANGES = dict(removed=removed, retyped=retyped, misspelt=misspelt)


def changed(content: Any, change: Callable, draw: Random) -> Any:
    content = json.loads(json.dumps(content))
    change(*draw.choice(places(content)), draw)
    return content


def configs(folder: Path) -> dict[str, Case]:
    bases = [config.load_config(Path(__file__).parent / 'tools' / (
        f'tiny_{name}.py')).to_dict() for name in ('student', 'distillation')]
    bases = json.loads(json.dumps(bases, default=str))

    def build(change: Callable, draw: Random) -> str:
        path, base = folder / 'config.json', draw.choice(bases)
        path.write_text(json.dumps(changed(base, change, draw)))
        args = argparse.Namespace(
            config=str(path), cfg_options=None, work_dir=str(folder / 'run'),
            launcher='none', local_rank=None)
        said, noise = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(
                    noise), plain(draw), command_line.one_line_errors():
                cfg = command_line.read_run_config(args)
                command_line.build_runner(cfg)
        except SystemExit as leaving:
            lines = said.getvalue().splitlines()
            expect(leaving.code == 2 and lines and len(lines[-1]) > 20,
                   f'exit {leaving.code} and {lines}')
            return REFUSED
        finally:
            for logger in MMLogger._instance_dict.values():
                for handler in logger.handlers:
                    handler.close()
            MMLogger._instance_dict.clear()
        return 'built'

    return {name: partial(build, change) for name, change in CHANGES.items()}


# ---------------------------------------------------------------- plans
def plans(folder: Path) -> dict[str, Case]:
    from plan import read_plan
    network = dict(type='text', head=dict(num_classes=3))
    common = dict(train_cfg=dict(max_epochs=2), optim_wrapper=dict(lr=0.1),
                  val_dataloader=dict(dataset=dict(type='x')))
    (folder / 'ce.json').write_text(json.dumps(dict(common, model=network)))
    (folder / 'kd.json').write_text(json.dumps(dict(common, model=dict(
        type='text', architecture=network, teacher=network,
        teacher_ckpt=''))))
    content = dict(
        name='plan', seeds=[0, 1], options={'optim_wrapper.lr': 0.2},
        compare=['ce'], runs=dict(
            teacher=dict(config='ce.json', seeds=[0]),
            ce=dict(config='ce.json'),
            kd=dict(config='kd.json', needs='teacher', grid=dict(
                tau={'model.tau': [2, 4]}, alpha={'model.alpha': [1]}))))
    text = yaml.safe_dump(content).encode()
    path = folder / 'plan.yml'

    def read(data: Callable[[Random], bytes], draw: Random) -> str:
        path.write_bytes(data(draw))
        try:
            with plain(draw):
                read_plan(path, folder / 'out')
        except config.ConfigError as error:
            for line in str(error).splitlines():
                expect(line.startswith(f'{path}: ') and len(line) < 2000,
                       f'not one line: {line}')
            return REFUSED
        return 'read'

    return {
        **{f'text {name}': partial(read, partial(damage, text))
           for name, damage in DAMAGES.items()},
        **{name: partial(read, lambda draw, change=change: yaml.safe_dump(
            changed(content, change, draw)).encode())
           for name, change in CHANGES.items()}}


# Share of all inputs; a config takes the most time.
AREAS: dict[str, tuple[float, Callable[[Path], dict[str, Case]]]] = dict(
    losses=(0.3, losses), checkpoints=(0.25, checkpoints),
    caches=(0.2, caches), pictures=(0.12, pictures), configs=(0.05, configs),
    plans=(0.08, plans))
