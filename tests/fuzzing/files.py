"""Damaged, foreign and odd files: checkpoints, teacher caches, pictures."""
import contextlib
import io
import os
import pickle
import random
import struct
import zlib
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import stored
import torch
from mmengine.logging import HistoryBuffer
from PIL import Image
from torch.utils import _pytree

from wsld_plugin.caching import TeacherCacheError
from wsld_plugin.caching.record import decode, unpack
from wsld_plugin.caching.storage import MANIFEST, ROWS, TeacherCache
from wsld_plugin.checkpoints import CheckpointError, read_checkpoint
from wsld_plugin.datasets import read_folder

from .cases import DAMAGES, RIGHT, cut, expect, judged


def same(one, two):
    leaves, others = map(_pytree.tree_flatten, (one, two))
    return str(leaves[1]) == str(others[1]) and all(
        a.dtype == b.dtype and torch.equal(a, b) if isinstance(
            a, torch.Tensor) else repr(a) == repr(b)
        for a, b in zip(leaves[0], others[0]))


class Code:
    """A pickle of it calls something."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def other_pickle(path, mark, draw):
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


def checkpoints(folder):
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

    def damaged(data, damage, draw):
        path.write_bytes(damage(data, draw))
        # The old format has no checksum: other numbers cannot be seen.
        return judged(CheckpointError, lambda: read_checkpoint(str(path)),
                      partial(judge, data is whole[0]))

    def judge(sealed, found):
        if same(found['state_dict'], right['state_dict']):
            return RIGHT
        expect(not sealed, 'silently other tensors')
        return 'other numbers, no checksum'

    def pickled(draw):
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


def caches(folder):
    return {f'{name}: {kind}': case
            for name, top_k in (('all classes', None), ('top 3', 3))
            for kind, case in one_cache(folder / name, top_k).items()}


def one_cache(place, top_k):
    logits, labels = stored.confident(12)
    cache = stored.store(place, logits, labels, top_k)
    files = {file: (place / file).read_bytes() for file in (MANIFEST, ROWS)}

    def read(rows):
        return decode(unpack(TeacherCache(place).rows(rows),
                             torch.device('cpu')), 12)

    right = read(range(len(cache)))
    expect(torch.allclose(right.softmax(1).gather(1, labels[:, None]),
                          logits.softmax(1).gather(1, labels[:, None]),
                          atol=1e-5), 'the cache itself')

    def damaged(file, damage, draw):
        for other, data in files.items():
            (place / other).write_bytes(data)
        (place / file).write_bytes(damage(files[file], draw))
        chosen = draw.sample(range(len(right)), 40)

        def judge(found):
            expect(torch.equal(found, right[chosen]), 'silently other logits')
            return RIGHT

        return judged(TeacherCacheError, lambda: read(chosen), judge)

    def swapped(data, draw):
        rows = [*map(bytes, np.frombuffer(data, 'u1').reshape(
            len(right), -1))]
        one, two = draw.sample(range(len(rows)), 2)
        rows[one], rows[two] = rows[two], rows[one]
        return b''.join(rows)

    return {
        **{f'{file} {what}': partial(damaged, file, damage)
           for file in files for what, damage in DAMAGES.items()},
        f'{ROWS} rows swapped': partial(damaged, ROWS, swapped)}


def huge(data, draw):
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


def pictures(folder):
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

    def pixels(data):
        return cv2.imdecode(np.frombuffer(data, 'u1'), cv2.IMREAD_COLOR)

    def look(path, data, sealed=False):
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

    def kind_of(data, sealed):
        now = pixels(data)
        if any(np.array_equal(now, pixels(one)) for one in whole.values()):
            return RIGHT
        expect(not sealed, 'silently other pixels')
        return 'other pixels, no checksum'

    def damaged(kind, damage, draw):
        # A PNG has checksums; of the others only an end can be missed.
        sealed = kind == 'PNG' or (damage is cut and kind == 'JPEG')
        return look(root / 'a' / 'x.png', damage(whole[kind], draw), sealed)

    def renamed(draw):
        place = root / draw.choice(['a', 'b', 'a/deep', '.'])
        return look(place / draw.choice(NAMES), whole[draw.choice([*whole])])

    def no_file(draw):
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
