"""Old names, for ``report/style.py``; they live in ``cifar_dist.errors`` and ``cifar_dist.files``."""

from cifar_dist.errors import printable as printable
from cifar_dist.files import write_atomic as replace_file

__all__ = ["printable", "replace_file"]
