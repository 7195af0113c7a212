"""Resource specifications of tasks, and the jobspecs (RFC 25) that request them.

May import `errors`.
"""

from parsl_flux_bulk.jobspec.build import (
    Environment,
    build,
    filter_environment,
    validate,
    working_directory,
)

__all__ = ["Environment", "build", "filter_environment", "validate", "working_directory"]
