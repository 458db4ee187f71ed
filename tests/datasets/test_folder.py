"""Folders of pictures: what is read, left out, told and drawn."""
import os
from io import BytesIO
from itertools import chain

import numpy as np
import pytest
from mmpretrain.datasets import CustomDataset
from PIL import Image

from wsld_plugin.datasets import PictureFolderError, read_folder
from wsld_plugin.datasets.folder import write_lists

RNG = np.random.RandomState(0)


def encoded(mode='RGB', size=(12, 10), kind='PNG', **options):
    pixels = RNG.randint(0, 255, (size[1], size[0], 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def put(root, *paths, data=None):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded() if data is None else data)


def put_classes(root, *tops, count=10):
    put(root, *(f'{top}/{number}.png' for top in tops
                for number in range(count)))


def counts(folder):
    return {split: [sum(label == at for _, label in pictures)
                    for at in range(len(folder.classes))]
            for split, pictures in folder.splits.items()}


def test_draw_is_stratified_and_depends_on_seed_and_paths_only(tmp_path):
    put_classes(tmp_path / 'a', 'cat', 'dog', count=20)
    put(tmp_path / 'a', 'dog/deep/er/x.png', 'owl/0.png', 'owl/1.png')
    folder = read_folder(tmp_path / 'a')
    assert folder.classes == ('cat', 'dog', 'owl')
    assert counts(folder) == dict(
        train=[16, 17, 2], val=[2, 2, 0], test=[2, 2, 0])
    paths = [*chain(*folder.splits.values())]
    assert len(set(paths)) == len(paths) == 43
    assert any('1 of 3 classes have no val pictures: owl' in note
               for note in folder.notes)
    # Other bytes, written in another order.
    put(tmp_path / 'b', *(path for path, _ in reversed(sorted(paths))))
    other = read_folder(tmp_path / 'b')
    assert other.splits == folder.splits and other.digest != folder.digest
    assert read_folder(tmp_path / 'b').digest == other.digest
    assert read_folder(tmp_path / 'b', seed=1).splits != folder.splits
    # A picture more moves nobody to another split than the border's.
    put(tmp_path / 'b', 'cat/new.png')
    moved = {*other.splits['train']} - {
        *read_folder(tmp_path / 'b').splits['train']}
    assert len(moved) <= 2


@pytest.mark.parametrize(('given', 'drawn'), [
    (['train', 'Valid'], 'test'), (['train', 'test'], 'val'),
    (['train'], 'val and test'), (['train', 'validation', 'test'], '')])
def test_splits_of_the_folder_are_kept(tmp_path, given, drawn):
    put_classes(tmp_path, *(f'{top}/{name}' for top in given
                            for name in 'xy'))
    folder = read_folder(tmp_path)
    assert folder.classes == ('x', 'y')
    for split in ('val', 'test'):
        own = [top for top in given if top.lower()[:2] == split[:2]]
        assert counts(folder)[split] == ([10, 10] if own else [1, 1])
        assert {path.split('/')[0] for path, _ in folder.splits[split]} == {
            *(own or ['train'])}
    assert [note.split(':')[0] for note in folder.notes] == (
        [drawn] if drawn else [])


def test_damaged_files_are_left_out_with_their_reason(tmp_path):
    put_classes(tmp_path, 'a', 'b')
    jpeg = encoded(size=(80, 60), kind='JPEG')
    preview = encoded(size=(80, 60), kind='JPEG', comment=jpeg)
    assert preview.count(b'\xff\xd9') == 2
    bad = {
        'a/cut.jpg': (jpeg[:len(jpeg) // 2], 'damaged: its end is missing'),
        'a/cut_preview.jpg': (preview[:-9], 'damaged: its end is missing'),
        'a/cut.png': (encoded()[:-20], 'damaged: its end is missing'),
        'a/crc.png': (bytes([*encoded()[:60], *[0] * 8, *encoded()[68:]]),
                      'damaged, or a PNG that OpenCV cannot read'),
        'a/zero.jpg': (b'', 'zero bytes'),
        'b/text.jpg': (b'no picture', 'not a picture that OpenCV can read'),
        'b/notes.txt': (b'cats', 'not a picture that OpenCV can read'),
        'b/.DS_Store': (b'x', 'hidden'),
        'b/line\nbreak.png': (encoded(), 'a line break in its name'),
        'b/r\rn.png': (encoded(), 'a line break in its name'),
        ' c/x.png': (encoded(), 'its name starts with a blank'),
        'top.png': (encoded(), 'in no folder of a class'),
    }
    for path, (data, _) in bad.items():
        put(tmp_path, path, data=data)
    put(tmp_path, 'a/whole.jpg', data=preview)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'a/gone.png').symlink_to('nowhere')
    (tmp_path / 'a/loop').symlink_to(tmp_path)
    os.mkfifo(tmp_path / 'a/pipe')
    folder = read_folder(tmp_path)
    assert dict(folder.left_out) == {
        **{path: reason for path, (_, reason) in bad.items()},
        'a/gone.png': 'a broken link',
        'a/loop': 'cannot be read (a link to a folder above it)',
        'a/pipe': 'no file'}
    assert folder.classes == ('a', 'b')
    assert sum(map(len, folder.splits.values())) == 21
    notes = '\n'.join(folder.notes)
    assert 'folders without pictures, thus no classes:  c, empty' in notes
    assert '3 left out: damaged: its end is missing (first: a/cut.jpg)' in (
        notes)


def test_unusual_pictures_are_told(tmp_path):
    put_classes(tmp_path, 'a', 'b')
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, data in {
            'grey.png': encoded('L'), 'grey.jpg': encoded('L', kind='JPEG'),
            'alpha.png': encoded('RGBA'),
            'cmyk.jpg': encoded('CMYK', kind='JPEG'),
            'deep.png': encoded('I;16'), 'small.png': encoded(size=(30, 7)),
            'turned.jpg': encoded(size=(40, 30), kind='JPEG', exif=turned),
            'moving.webp': encoded(kind='WEBP', save_all=True, append_images=[
                Image.new('RGB', (12, 10))])}.items():
        put(tmp_path, f'a/{name}', data=data)
    put(tmp_path, 'a/twin.png', 'b/twin.png', data=encoded())
    folder = read_folder(tmp_path)
    assert folder.left_out == []
    told = [(note.split()[0], note.split('first: a/')[1][:-1])
            for note in folder.notes[1:-1]]
    assert told == [
        ('3', 'deep.png'), ('1', 'alpha.png'), ('1', 'cmyk.jpg'),
        ('1', 'deep.png'), ('1', 'moving.webp'), ('1', 'turned.jpg'),
        ('1', 'small.png')]
    assert folder.notes[-1].endswith('stand in several classes (first: '
                                     'a/twin.png, b/twin.png)')


def test_copies_are_never_drawn(tmp_path):
    put_classes(tmp_path, 'a', 'b', count=30)
    for number in range(12):
        put(tmp_path, f'a/twin{number}.png', f'a/x/twin{number}.png',
            data=encoded())
    folder = read_folder(tmp_path)
    assert counts(folder)['val'] == [5, 3]
    assert not any('twin' in path for split in ('val', 'test')
                   for path, _ in folder.splits[split])


def test_statistics_are_those_of_training_pictures_in_rgb(tmp_path):
    for name, colour in (('a', (200, 100, 0)), ('b', (100, 100, 50))):
        for split, size in (('train', (30, 20)), ('val', (9, 9))):
            file = BytesIO()
            Image.new('RGB', size, colour).save(file, 'PNG')
            put(tmp_path, f'{split}/{name}/x.png', f'test/{name}/x.png',
                data=file.getvalue())
    folder = read_folder(tmp_path)
    assert folder.size == 20
    assert folder.mean == (150, 100, 25)
    assert folder.std == (50, 1, 25)


def test_mmpretrain_reads_the_lists(tmp_path):
    root = tmp_path / 'p, q'
    put_classes(root, 'two words', 'ß, "é" 3', '日本')
    put(root, 'two words/ a 1', 'two words/b .png', '日本/\u2028\x85.png')
    put(root, '日本/bad\n,"\r.png')
    put(root, '日本/' + os.fsdecode(b'\xff.png'))
    folder = read_folder(root)
    assert len(folder.left_out) == 2
    write_lists(folder, tmp_path / 'lists')
    for split, pictures in folder.splits.items():
        dataset = CustomDataset(
            ann_file=str(tmp_path / 'lists' / f'{split}.txt'),
            data_prefix=str(root), metainfo=dict(classes=folder.classes))
        assert [(info['img_path'], info['gt_label'])
                for info in map(dataset.get_data_info, range(len(dataset)))
                ] == [(f'{root}/{path}', label) for path, label in pictures]


@pytest.mark.parametrize(('paths', 'message'), [
    (['Cat/a', 'cat/a'], "two classes have one name: 'Cat' and 'cat'"),
    (['cat/a', 'cat /a'], "two classes have one name: 'cat' and 'cat '"),
    (['e\u0301/a', '\xe9/a'], r"one name: 'e\\u0301' and '\\xe9'"),
    (['train/Cat/a', 'val/cat/a'], 'two classes have one name'),
    (['a/1', 'a/2'], 'has 1 class with'), (['1', '2'], 'no classes with .*; '
                                           'left out: 2, first 1: in no fol'),
    (['train/1', 'test/1'], 'no classes'), (['test/a/1', 'val/b/2'],
                                            'no folder train'),
    (['train/a/1', 'val/a/1', 'valid/b/1'], 'two folders for val'),
    (['a/1', 'b/1', 'b/2'], 'no pictures for val, and no class with 3')])
def test_wrong_folders_are_refused_in_one_line(tmp_path, paths, message):
    put(tmp_path, *paths)
    with pytest.raises(PictureFolderError, match=message) as refusal:
        read_folder(tmp_path)
    assert '\n' not in str(refusal.value)


def test_a_class_may_be_called_train(tmp_path):
    put_classes(tmp_path, 'train', 'bus')
    assert read_folder(tmp_path).classes == ('bus', 'train')
    with pytest.raises(PictureFolderError, match='no such folder'):
        read_folder(tmp_path / 'nowhere')
