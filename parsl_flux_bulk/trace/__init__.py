"""Trace files: what happened when in a run, written while it runs, and read by reports and by your own code.

``docs/trace.md`` documents the format. May import nothing but `errors` and `version`.
"""

from parsl_flux_bulk.trace.reader import Trace, read, tasks

__all__ = ["Trace", "read", "tasks"]
