"""Networks that mmpretrain lacks, in ``backbones``."""
