"""Networks that mmpretrain lacks, the table of those we train, teachers."""
from .building import NetworkError, build_network
from .sources import Source, classifier, find_network
from .teacher import Teacher

__all__ = [
    'NetworkError', 'Source', 'Teacher', 'build_network', 'classifier',
    'find_network'
]
