"""Networks, and what stands in a network's place."""
from .cached_teacher import CachedTeacher
from .teacher_cache import TeacherCache, TeacherCacheError

__all__ = ['CachedTeacher', 'TeacherCache', 'TeacherCacheError']
