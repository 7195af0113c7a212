"""Requests for resources, and jobspecs (RFC 25): built, or parsed and checked.

May import `errors`.
"""

from parsl_flux_bulk.jobspec.build import build, working_directory
from parsl_flux_bulk.jobspec.environment import Environment, filter_environment
from parsl_flux_bulk.jobspec.jobspec import Jobspec

__all__ = ["Environment", "Jobspec", "build", "filter_environment", "working_directory"]
