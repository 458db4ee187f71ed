"""A teacher's answers, computed once, kept in files and looked up."""
from .building import build_cache, verify_cache
from .cached_teacher import CachedTeacher
from .storage import TeacherCache, TeacherCacheError

__all__ = [
    'CachedTeacher', 'TeacherCache', 'TeacherCacheError', 'build_cache',
    'verify_cache'
]
