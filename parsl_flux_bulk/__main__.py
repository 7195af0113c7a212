"""``python -m parsl_flux_bulk`` is the `bulksubmit` command."""

from parsl_flux_bulk.cli.bulksubmit.main import run

run()
