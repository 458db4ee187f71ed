"""A teacher's answers, computed once, kept in files and looked up."""
from .building import build_cache, verify_cache
from .cached_teacher import CachedTeacher
from .manifest import TeacherCacheError
from .storage import TeacherCache

__all__ = [
    'CachedTeacher',
    'TeacherCache',
    'TeacherCacheError',
    'build_cache',
    'verify_cache',
]
