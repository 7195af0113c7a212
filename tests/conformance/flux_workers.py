"""Tasks in warm workers, in a Flux instance of our own."""

from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor


def fresh_config() -> Config:
    return Config(executors=[FluxBulkExecutor(label="flux_workers", instance="flux")])
