"""What is asked of the instance: resources, and the jobspecs (RFC 25) that ask for them."""

from parsl_flux_bulk.jobspec.build import (
    Environment,
    build,
    filter_environment,
    validate,
    working_directory,
)

__all__ = ["Environment", "build", "filter_environment", "validate", "working_directory"]
