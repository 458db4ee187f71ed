"""Pictures for the tests of this folder."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    """Three classes of noise around a colour of their own, 40 x 36 pixels."""
    folder = tmp_path_factory.mktemp('call') / 'pictures'
    draw = np.random.RandomState(0)
    for label, name in enumerate(('blue & <b>', 'green', 'rød')):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            picture = draw.randint(0, 120, (36, 40, 3))
            picture[..., 2 - label] += 120
            Image.fromarray(picture.astype('uint8')).save(
                folder / name / f'{number}.png')
    (folder / 'rød' / 'cut.png').write_bytes(b'\x89PNG')
    return folder
