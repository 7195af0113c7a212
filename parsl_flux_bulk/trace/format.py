"""The layout of a trace file.

A file begins with `MAGIC`. Chunks follow: one byte of kind, four bytes of length, and so many bytes of
content. Numbers are little-endian. A file that ends within a chunk belongs to a run that goes on, or that was
killed.

========  ==========================================================================================
kind      content
========  ==========================================================================================
``E``     an event: one JSON object, with ``event`` and ``time``
``T``     tasks that ended: records of 64 bytes, `HEAD` and `TIMES`
========  ==========================================================================================

Times are seconds since the epoch; NaN is a time that is not known.
"""

from __future__ import annotations

import math
import struct

MAGIC = b"FBTRACE1"
CHUNK = struct.Struct("<cI")
EVENT, TASKS = b"E", b"T"

HEAD = struct.Struct("<QIIIB3xddd")
"""Id, index of the app, index of the worker (0: none), number of the job (0: none), outcome; then when it was
submitted, assigned and resolved."""

TIMES = struct.Struct("<dd")
"""When the task started and ended, by the clock of its host."""

TASK = struct.Struct(HEAD.format + TIMES.format.lstrip("<"))

NO_TIMES = TIMES.pack(math.nan, math.nan)

OUTCOMES = ("completed", "failed", "lost", "canceled")
COMPLETED, FAILED, LOST, CANCELED = range(4)

FAILURES_LIMIT = 1000
"""Failures that a run describes; of the others, only the outcome is kept."""

SHOWN_TASKS = 40
"""Tasks that a count names, of those that run and of those that wait, while somebody watches."""

WATCH_TIME = 10.0
"""Seconds for which counts name tasks after a request to do so."""

TEXT_LENGTH = 2000
"""Characters of a command or of an error's message that are kept."""

SUFFIX = ".trace"
"""Of the names of trace files."""
