"""What is said about a fix."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fix:
    """A change to somebody else's package that is in force.

    Attributes:
        name: Short handle, unique among the fixes.
        package: The package whose behaviour is changed.
        versions: Where the change is needed.
        reason: What fails without it.
        upstream: File in which the cause stands, relative to the
            environment's site-packages.
    """

    name: str
    package: str
    versions: str
    reason: str
    upstream: str
