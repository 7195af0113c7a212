"""Places where jobs run; see :mod:`parsl_flux_bulk.instances.base`."""
