"""The cached teacher, and in ``backbones`` networks built on mmpretrain's."""
from .cached_teacher import CachedTeacher
from .teacher_cache import TeacherCache, TeacherCacheError

__all__ = ['CachedTeacher', 'TeacherCache', 'TeacherCacheError']
