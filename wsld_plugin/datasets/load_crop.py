"""Loading and random cropping in one, which decodes less of a JPEG."""
from __future__ import annotations

import os
import struct
from functools import lru_cache
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from PIL import Image

_JPEG_START = b'\xff\xd8\xff'
_ORIENTATION = 0x0112
_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}
# nvImageCodec's number for a machine whose GPU, if any, is to be left alone.
_NO_DEVICE = -99999


@TRANSFORMS.register_module()
class LoadRandomResizedCrop:
    """Load an image and crop it as mmpretrain's ``RandomResizedCrop``.

    Stands for ``LoadImageFromFile`` and ``RandomResizedCrop`` in a pipeline.
    The crop is drawn first, from the size in the JPEG's header, by the same
    calls of the same generator: equal seeds give equal crops. The rest of the
    picture then need not be decoded. ``img`` (uint8 BGR array of shape
    (height, width, 3)), ``img_shape`` and ``ori_shape`` are those of the two
    transforms.

    Without ``region`` and ``min_sampling`` everything is as with the two.
    Files that are no JPEG, that an EXIF tag turns, that have four colour
    channels or whose header is damaged always are loaded as by
    ``LoadImageFromFile``.

    Args:
        scale: Height and width of the output in pixels, or both in one.
        region: Decode only the part of a JPEG that the crop needs. The pixels
            are the same. Takes the package nvImageCodec, of which the CPU's
            part is used. Damage outside of the crop may go unnoticed.
        min_sampling: Decode at 1/2, 1/4 or 1/8 of the size wherever the crop
            then still has this many pixels, along both sides, for each of
            the output. The pixels differ: reduced ones are averages, where
            bilinear interpolation leaves pixels out. At 1 that is all; below
            1 detail is lost, at 0.5 about half of the resolution at worst.
            ``None`` forbids it. Where both apply, this goes before
            ``region``.
        backend_args: Of :func:`mmengine.fileio.get`.
        **kwargs: Further arguments of ``RandomResizedCrop``.

    Raises:
        ImportError: If ``region`` is asked for and nvImageCodec cannot be
            imported.
        ValueError: If ``min_sampling`` is not positive, or given together
            with ``backend='pillow'``.
    """

    def __init__(self,
                 scale: int | tuple[int, int],
                 region: bool = False,
                 min_sampling: float | None = None,
                 backend_args: dict | None = None,
                 **kwargs: Any) -> None:
        if min_sampling is not None:
            if not min_sampling > 0:
                raise ValueError('min_sampling must be positive or None, got '
                                 f'{min_sampling!r}')
            if kwargs.get('backend', 'cv2') != 'cv2':
                raise ValueError("min_sampling needs backend='cv2', got "
                                 f'{kwargs["backend"]!r}')
        if region:
            _require_nvimgcodec()
        # Not above: wsld_plugin is imported without mmpretrain, too.
        from mmpretrain.datasets.transforms import RandomResizedCrop
        self.crop = RandomResizedCrop(scale, **kwargs)
        self.region = region
        self.min_sampling = min_sampling
        self.backend_args = backend_args

    def __call__(self, results: dict) -> dict:
        """Load ``results['img_path']`` and crop it.

        Raises:
            ValueError: If the file cannot be decoded.
        """
        path = results['img_path']
        content = fileio.get(path, backend_args=self.backend_args)
        shape = _upright_jpeg_shape(content)
        if shape is not None:
            # The transform looks at nothing but the shape.
            like = np.broadcast_to(np.uint8(0), (*shape, 3))
            box = self.crop.rand_crop_params(like)
            img = self._crop(content, shape, box)
            if img is not None:
                results.update(
                    img=img, img_shape=img.shape, ori_shape=shape)
                return results
        img = _decode(content)
        if img is None:
            raise ValueError(f'failed to load image: {path}')
        results.update(img=img, ori_shape=img.shape[:2])
        return self.crop(results)

    def _crop(self, content: bytes, shape: tuple[int, int],
              box: tuple[int, int, int, int]) -> np.ndarray | None:
        """The box (top, left, height, width) in the size of the output.

        ``None`` where what the decoder finds is not what the header says.
        """
        # Not above: wsld_plugin is imported without mmcv, too.
        from mmcv.image.geometric import cv2_interp_codes, imresize
        factor = self._reduction(box)
        top, left, height, width = box
        rows, columns = self.crop.scale
        patch = None
        if self.region and factor == 1:
            patch = _decode_region(content, box)
        if patch is None:
            img = _decode(content, _REDUCED.get(factor, cv2.IMREAD_COLOR))
            if img is None or img.shape[:2] != tuple(
                    -(-side // factor) for side in shape):
                return None
            if factor > 1:
                # The box begins and ends between reduced pixels; resizing
                # whole ones would shift the picture.
                step = np.array([width / columns, height / rows]) / factor
                start = np.array([left, top]) / factor + (step - 1) / 2
                return cv2.warpAffine(
                    img,
                    np.column_stack([np.diag(step), start]), (columns, rows),
                    flags=cv2_interp_codes[self.crop.interpolation]
                    | cv2.WARP_INVERSE_MAP,
                    borderMode=cv2.BORDER_REPLICATE)
            patch = img[top:top + height, left:left + width]
        return imresize(
            patch, (columns, rows),
            interpolation=self.crop.interpolation,
            backend=self.crop.backend)

    def _reduction(self, box: tuple[int, int, int, int]) -> int:
        """Largest divisor that the crop allows."""
        if self.min_sampling is not None:
            for factor in _REDUCED:
                if all(length >= factor * self.min_sampling * side
                       for length, side in zip(box[2:], self.crop.scale)):
                    return factor
        return 1

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(region={self.region}, '
                f'min_sampling={self.min_sampling}, '
                f'backend_args={self.backend_args}, crop={self.crop})')


def _upright_jpeg_shape(content: bytes) -> tuple[int, int] | None:
    """Height and width by a JPEG's header, ``None`` for all other files.

    Pictures that are stored turned count among the others, and so do those
    of four channels, whose conversion differs between decoders.
    """
    if not content.startswith(_JPEG_START):
        return None
    try:
        with Image.open(BytesIO(content)) as image:
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            if turned or image.mode not in ('RGB', 'L'):
                return None
            return image.height, image.width
    # What Pillow raises for broken headers and for broken EXIF data.
    except (OSError, SyntaxError, ValueError, KeyError, struct.error,
            Image.DecompressionBombError):
        return None


def _decode(content: bytes,
            flag: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    """What ``LoadImageFromFile`` calls, ``None`` if OpenCV cannot read it."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), flag)


def _decode_region(content: bytes,
                   box: tuple[int, int, int, int]) -> np.ndarray | None:
    """Pixels of the box (top, left, height, width) of an upright JPEG."""
    import nvidia.nvimgcodec as nvimgcodec
    top, left, height, width = box
    stream = nvimgcodec.CodeStream(content)
    part = stream.get_sub_code_stream(
        region=nvimgcodec.Region([top, left], [top + height, left + width]))
    decoder, params = _region_decoder(os.getpid())
    image = decoder.decode(part, params=params)
    return None if image is None else np.asarray(image.cpu())


@lru_cache(maxsize=1)
def _region_decoder(process: int) -> tuple[Any, Any]:
    """A decoder for the process: those of a parent do not survive a fork."""
    import nvidia.nvimgcodec as nvimgcodec
    decoder = nvimgcodec.Decoder(
        device_id=_NO_DEVICE,
        max_num_cpu_threads=1,
        backends=[nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)],
        # Of colours at half resolution, as OpenCV does.
        options=':fancy_upsampling=1')
    params = nvimgcodec.DecodeParams(
        apply_exif_orientation=False,
        sample_format=nvimgcodec.SampleFormat.I_BGR)
    return decoder, params


def _require_nvimgcodec() -> None:
    # At once, rather than in each worker.
    try:
        import nvidia.nvimgcodec  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'region=True decodes by nvImageCodec, which cannot be imported '
            f'({error}): pip install nvidia-nvimgcodec-cu12') from error
