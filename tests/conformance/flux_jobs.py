"""Each task is a Flux job, in a Flux instance that the executor starts."""

from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor


def fresh_config() -> Config:
    return Config(executors=[FluxBulkExecutor(label="flux_jobs", instance="flux", tasks_per_job=1)])
