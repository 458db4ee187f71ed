"""Networks that mmpretrain lacks, the table of those we train, teachers."""
from .sources import (
    NetworkError,
    Source,
    build_network,
    classifier,
    find_network,
)
from .teacher import Teacher

__all__ = [
    'NetworkError', 'Source', 'Teacher', 'build_network', 'classifier',
    'find_network'
]
