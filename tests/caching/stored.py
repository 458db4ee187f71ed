"""Small caches for the tests of this folder."""

import numpy as np
import pytest
import torch

from wsld_plugin.caching import TeacherCache, TeacherCacheError
from wsld_plugin.caching.record import encode
from wsld_plugin.caching.storage import make_manifest, prepare_cache


def confident(classes):
    """121 logits whose true class is ahead by -60 to 60 nats."""
    generator = torch.Generator().manual_seed(0)
    margins = torch.arange(-60, 61).float()
    logits = 2 * torch.randn(len(margins), classes, generator=generator)
    labels = torch.randint(classes, margins.shape, generator=generator)
    true = labels.unsqueeze(1)
    others = logits.scatter(1, true, float('-inf')).logsumexp(1)
    logits.scatter_(1, true, (others + margins).unsqueeze(1))
    return logits + 40 * torch.randn(
        len(margins), 1, generator=generator), labels


def write(cache, rows, logits, labels, pixels=0, inputs=0):
    made = encode(logits, labels, cache.top_k)
    cache.write(rows, pixels=np.asarray(pixels), inputs=np.asarray(inputs),
                **{name: value.numpy() for name, value in made.items()})


def store(folder, logits, labels, top_k=None, pixels=0, inputs=0, **fields):
    """A finished cache."""
    manifest = make_manifest(logits.shape[1], top_k, count=len(logits),
                             **fields)
    folder.mkdir(exist_ok=True)
    prepare_cache(folder, manifest)
    write(TeacherCache(folder, manifest), [*range(len(logits))], logits,
          labels, pixels, inputs)
    assert not len(prepare_cache(folder, manifest))
    return TeacherCache(folder)


def refused(said):
    return pytest.raises(TeacherCacheError, match=said)
