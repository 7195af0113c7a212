"""Bash apps run with Parsl's own code in warm workers, on the embedded instance."""

from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor


def fresh_config() -> Config:
    return Config(executors=[FluxBulkExecutor(label="python_bash", instance="local", bash_apps="python")])
