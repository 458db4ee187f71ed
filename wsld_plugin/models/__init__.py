"""Networks; those in ``backbones`` build on mmpretrain's."""
