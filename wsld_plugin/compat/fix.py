"""What is said about a fix, and the list of those in force."""
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


_in_force: dict[str, Fix] = {}


def put_on_record(fix: Fix) -> None:
    """Note that a fix is in force."""
    _in_force[fix.name] = fix


def fixes_in_force() -> tuple[Fix, ...]:
    """Changes to others' packages that were found necessary so far.

    Returns:
        One record per fix, in the order in which they came into force;
        only ``mmrazor-teachers`` and ``own-names`` where the installed
        packages need no other (torch 1.13 with ``setuptools<82`` and mmcv
        2.1, say).
    """
    return tuple(_in_force.values())
