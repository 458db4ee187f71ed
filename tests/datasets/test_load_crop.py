"""Loading and cropping in one gives what mmpretrain's two transforms give."""
from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS
from mmpretrain.datasets.transforms import RandomResizedCrop
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset

from wsld_plugin.datasets import LoadRandomResizedCrop

SIDE = 64
needs_nvimgcodec = pytest.mark.skipif(
    find_spec('nvidia') is None or find_spec('nvidia.nvimgcodec') is None,
    reason='nvImageCodec is not installed')
REGION = pytest.param(True, marks=needs_nvimgcodec)
# How a photograph is stored, by the name of its file.
FORMS: dict[str, dict[str, Any]] = {
    'colours_halved.jpg': {},
    'colours_whole.jpg': dict(subsampling=0),
    'colours_halved_sideways.jpg': dict(subsampling=1),
    'progressive.jpg': dict(progressive=True),
    'restarts.jpg': dict(restart_marker_blocks=3),
    'grey.jpg': dict(mode='L'),
    'four_inks.jpg': dict(mode='CMYK'),
    'photo.png': {},
    'jpeg_by_name.jpg': dict(format='PNG'),
    'palette.png': dict(mode='P'),
}


@lru_cache
def photographs() -> list[Image.Image]:
    return [Image.fromarray(image) for image in load_sample_images().images]


def save(path: Path, image: Image.Image, mode: str = 'RGB',
         **options: Any) -> str:
    image.convert(mode).save(path, **options)
    return str(path)


def stock(path: str, **kwargs: Any) -> dict[str, Any]:
    results = LoadImageFromFile()(dict(img_path=path))
    return RandomResizedCrop(SIDE, **kwargs)(results)


def both(transform: Callable[[dict], dict], path: str, seed: int,
         **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results of the transform and of the two, and the draws that follow."""
    np.random.seed(seed)
    ours = transform(dict(img_path=path))
    ours['next draw'] = np.random.rand()
    np.random.seed(seed)
    theirs = stock(path, **kwargs)
    theirs['next draw'] = np.random.rand()
    return ours, theirs


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    image, expected = ours.pop('img'), theirs.pop('img')
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image, expected)
    assert ours == theirs


@pytest.mark.parametrize('region', [False, REGION])
@pytest.mark.parametrize('name', FORMS)
def test_same_picture_for_the_same_seed(name: str, region: bool,
                                        tmp_path: Path) -> None:
    photo = photographs()[0].crop((0, 0, 301, 203))
    path = save(tmp_path / name, photo, **FORMS[name])
    transform = LoadRandomResizedCrop(SIDE, region=region)
    for seed in range(8):
        assert_same(*both(transform, path, seed))


@pytest.mark.parametrize('region', [False, REGION])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_turned_pictures_are_turned_back(orientation: int, region: bool,
                                         tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / 'turned.jpg', photographs()[0], exif=exif)
    shape = (427, 640) if orientation < 5 else (640, 427)
    transform = LoadRandomResizedCrop(SIDE, region=region, min_sampling=1)
    ours, theirs = both(transform, path, 3)
    assert ours['ori_shape'] == theirs['ori_shape'] == shape
    if orientation > 1:
        assert_same(ours, theirs)


@pytest.mark.parametrize('region', [False, REGION])
def test_arguments_of_the_crop_are_passed_on(region: bool,
                                             tmp_path: Path) -> None:
    path = save(tmp_path / 'photo.jpg', photographs()[1])
    kwargs: dict[str, Any] = dict(
        crop_ratio_range=(0.5, 0.6),
        aspect_ratio_range=(1.0, 1.0),
        interpolation='bicubic',
        backend='pillow')
    transform = TRANSFORMS.build(
        dict(type='LoadRandomResizedCrop', scale=SIDE, region=region,
             **kwargs))
    assert_same(*both(transform, path, 0, **kwargs))
    transform = LoadRandomResizedCrop((32, 48), region=region)
    assert transform(dict(img_path=path))['img'].shape == (32, 48, 3)


@pytest.mark.parametrize('region', [False, REGION])
def test_damaged_files_are_as_before(region: bool, tmp_path: Path) -> None:
    whole = Path(save(tmp_path / 'whole.jpg', photographs()[0])).read_bytes()
    transform = LoadRandomResizedCrop(SIDE, region=region, min_sampling=9)
    path = tmp_path / 'broken.jpg'
    # The end is missing: OpenCV fills in or gives up, by version and file.
    for share in (0.5, 0.9):
        path.write_bytes(whole[:int(share * len(whole))])
        filled = mmcv.imfrombytes(path.read_bytes()) is not None
        for seed in range(8 * filled):
            assert_same(*both(transform, str(path), seed))
        # A region's decoder may never come to what is missing below.
        if not filled and not region:
            with pytest.raises(ValueError, match='failed to load image'):
                transform(dict(img_path=str(path)))
    # After the start only, within the header, and none of a picture.
    for content in (whole[:3], whole[:200], b'no picture'):
        path.write_bytes(content)
        with pytest.raises(AssertionError, match='failed to load image'):
            stock(str(path))
        with pytest.raises(ValueError, match=r'failed to load .*broken\.jpg'):
            transform(dict(img_path=str(path)))
    path.write_bytes(b'')
    for load in (stock, lambda name: transform(dict(img_path=name))):
        with pytest.raises(cv2.error):
            load(str(path))
    with pytest.raises(FileNotFoundError):
        transform(dict(img_path=str(tmp_path / 'missing.jpg')))


def test_reduced_only_where_the_crop_is_large_enough(tmp_path: Path) -> None:
    path = save(tmp_path / 'photo.jpg', photographs()[0])
    like = np.empty((427, 640, 3))
    changed = set()
    transform = LoadRandomResizedCrop(SIDE, min_sampling=2)
    for seed in range(30):
        np.random.seed(seed)
        box = transform.crop.rand_crop_params(like)
        ours, theirs = both(transform, path, seed)
        image, expected = ours.pop('img'), theirs.pop('img')
        assert ours == theirs
        same = np.array_equal(image, expected)
        assert same is (min(box[2:]) < 4 * SIDE)
        changed.add(not same)
    assert changed == {True, False}


@pytest.mark.parametrize('min_sampling,bound', [(1, 7), (0.5, 11)])
def test_reduced_pixels_stay_close(min_sampling: float, bound: float,
                                   tmp_path: Path) -> None:
    transform = LoadRandomResizedCrop(SIDE, min_sampling=min_sampling)
    errors = []
    for number, photo in enumerate(photographs()):
        path = save(tmp_path / f'{number}.jpg', photo)
        for seed in range(10):
            ours, theirs = both(transform, path, seed)
            errors.append(
                np.abs(ours['img'].astype(int) - theirs['img']).mean())
    assert 0.5 < np.mean(errors) < bound


@pytest.mark.parametrize('sides', [(640, 480), (637, 483)])
def test_reduced_pictures_are_not_shifted(sides: tuple[int, int],
                                          tmp_path: Path) -> None:
    # Grey values that rise and fall by 4 a pixel: a shift shows everywhere.
    width, height = sides
    waves = [np.abs(np.arange(n) % 64 - 32) * 4.0 for n in (height, width)]
    wave = (waves[0][:, None] + waves[1]) / 1.1
    path = save(
        tmp_path / 'wave.jpg',
        Image.fromarray(wave.astype(np.uint8)),
        quality=98)
    transform = LoadRandomResizedCrop(SIDE, min_sampling=1)
    image = cv2.imread(path)
    for seed in range(12):
        np.random.seed(seed)
        top, left, rows, columns = transform.crop.rand_crop_params(image)
        expected = cv2.resize(
            image[top:top + rows, left:left + columns], (SIDE, SIDE),
            interpolation=cv2.INTER_AREA)
        np.random.seed(seed)
        ours = transform(dict(img_path=path))['img']
        error = ours.astype(float) - expected
        assert np.abs(error).mean() < 3


class Crops(Dataset):
    """Crops of one file, drawn from seeds."""

    def __init__(self, transform: LoadRandomResizedCrop, path: str) -> None:
        self.transform = transform
        self.path = path

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> np.ndarray:
        np.random.seed(index)
        return self.transform(dict(img_path=self.path))['img']


@pytest.mark.parametrize('region', [False, REGION])
def test_works_in_workers(region: bool, tmp_path: Path) -> None:
    path = save(tmp_path / 'photo.jpg', photographs()[0])
    # Used in this process before: workers must not inherit a decoder.
    dataset = Crops(LoadRandomResizedCrop(SIDE, region=region), path)
    here = [dataset[index] for index in range(len(dataset))]
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=1,
        multiprocessing_context='fork',
        collate_fn=np.asarray)
    for image, expected in zip(loader, here):
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize('region', [False, REGION])
def test_a_copy_does_the_same(region: bool, tmp_path: Path) -> None:
    path = save(tmp_path / 'photo.jpg', photographs()[0])
    transform = LoadRandomResizedCrop(SIDE, region=region, min_sampling=3)
    transform(dict(img_path=path))
    # As workers that are spawned get it.
    copy = pickle.loads(pickle.dumps(transform))
    assert_same(*both(copy, path, 1))
    assert repr(copy) == repr(transform)
    assert 'min_sampling=3' in repr(transform)
    assert f'scale=({SIDE}, {SIDE})' in repr(transform)


@pytest.mark.parametrize('kwargs,message', [
    (dict(min_sampling=0), 'min_sampling must be positive or None, got 0'),
    (dict(min_sampling=-1.5), 'got -1.5'),
    (dict(min_sampling=1, backend='pillow'), "needs backend='cv2'"),
])
def test_wrong_arguments_are_named(kwargs: dict[str, Any],
                                   message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadRandomResizedCrop(SIDE, **kwargs)


def test_missing_nvimgcodec_is_said_with_the_cause(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'nvidia.nvimgcodec', None)
    with pytest.raises(ImportError, match='pip install nvidia-nvimgcodec'):
        LoadRandomResizedCrop(SIDE, region=True)
