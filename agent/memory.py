"""What was allocated once and is not needed any more goes back to the kernel."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """After loading a model, or dropping one; takes tens of milliseconds."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # 46 MB with ResNet-18, at the first start: the tuner needed it
    except AttributeError:
        pass  # another C library than glibc
