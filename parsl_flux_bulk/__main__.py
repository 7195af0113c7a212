"""``python -m parsl_flux_bulk`` is the `bulksubmit` command."""

import sys

from parsl_flux_bulk.cli.bulksubmit.main import main

sys.exit(main())
