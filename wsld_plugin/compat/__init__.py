"""The only place that patches others' packages or names a version range."""


def apply() -> None:
    """Put in force the fixes that the installed versions need."""
