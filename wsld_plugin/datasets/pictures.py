"""What is in one file of a folder of pictures, as mmpretrain would read it."""
from __future__ import annotations

import hashlib
import struct
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Union

import cv2
from PIL import Image

# What Pillow raises over headers that are wrong.
_WRONG_HEADER = (OSError, SyntaxError, ValueError, TypeError, LookupError,
                 EOFError, AttributeError, OverflowError, struct.error)
_JPEG = ('JPEG', 'MPO')
_ORIENTATION = 0x0112
_SMALL, _HUGE = 8, 20_000_000

# What is worth telling, as the end of a sentence.
TRAITS = {
    'grey': 'grey, in three equal channels',
    'transparent': 'with transparency, which OpenCV drops: the colours below '
                   'it are seen',
    'cmyk': 'CMYK, which OpenCV turns into RGB',
    'deep': 'of more than 8 bits a channel, which OpenCV cuts to 8',
    'animated': 'of several frames, the first of which is seen',
    'turned': 'turned upright by OpenCV, as their EXIF data say',
    'small': f'with a side below {_SMALL} pixels',
    'huge': f'of more than {_HUGE // 10**6} million pixels, which slow a '
            'training down',
}


class Picture(NamedTuple):
    """A picture that can be read.

    ``digest`` is the SHA-256 of the file's bytes, ``side`` the shorter one in
    pixels, ``mean`` that of red, green and blue, 0..255, ``square`` that of
    their squares; ``traits`` are keys of ``TRAITS``.
    """

    digest: str
    side: int
    mean: tuple[float, ...]
    square: tuple[float, ...]
    traits: tuple[str, ...]


def examine(path: Path) -> Union[Picture, str]:
    """Read a picture as mmpretrain's ``LoadImageFromFile`` does.

    A JPEG or PNG without its end counts as damaged, though some versions of
    OpenCV fill up what is missing with grey. If there is no picture, the
    reason is returned.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        return f'cannot be read ({error.strerror})'
    if not data:
        return 'zero bytes'
    try:
        kind, traits = _header(data)
    except Image.DecompressionBombError:
        return 'too many pixels'
    except _WRONG_HEADER:
        kind, traits = '', []
    if kind == 'cut':
        return 'damaged: its end is missing'
    try:
        # Not above: this package is imported without it, too.
        import mmcv
        image = mmcv.imfrombytes(data, backend='cv2')
    except cv2.error:
        image = None
    if image is None:
        return (f'damaged, or a {kind} that OpenCV cannot read'
                if kind else 'not a picture that OpenCV can read')
    mean, deviation = (tuple(reversed(part.ravel().tolist()))
                       for part in cv2.meanStdDev(image))
    if len(set(zip(mean, deviation))) == 1:
        traits.append('grey')
    height, width = image.shape[:2]
    if min(height, width) < _SMALL:
        traits.append('small')
    if height * width > _HUGE:
        traits.append('huge')
    return Picture(
        hashlib.sha256(data).hexdigest(), min(height, width), mean,
        tuple(m * m + d * d for m, d in zip(mean, deviation)), tuple(traits))


def _header(data: bytes) -> tuple[str, list[str]]:
    """Format of a picture, ``'cut'`` if its end is missing, and traits."""
    stream = BytesIO(data)
    image: Any = Image.open(stream)
    kind = image.format
    # Pillow stops where the pixels start: a preview has ends of its own.
    if ((kind in _JPEG and data.find(b'\xff\xd9', stream.tell()) < 0)
            or (kind == 'PNG' and b'IEND' not in data[-4096:])):
        return 'cut', []
    # Pillow decodes a PNG in search of EXIF data that may come last.
    exif = {} if kind == 'PNG' and 'exif' not in image.info else (
        image.getexif())
    found = {
        'transparent': 'A' in image.getbands() or 'transparency' in image.info,
        'cmyk': image.mode == 'CMYK',
        'deep': image.mode[0] in 'IF',
        'animated': kind not in _JPEG and getattr(image, 'is_animated', False),
        'turned': exif.get(_ORIENTATION, 1) in range(2, 9),
    }
    return kind, [name for name, true in found.items() if true]
