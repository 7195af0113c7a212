"""Parsl's HighThroughputExecutor with two workers, for comparison."""

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider


def fresh_config() -> Config:
    executor = HighThroughputExecutor(
        label="htex",
        max_workers_per_node=2,
        loopback_address="127.0.0.1",
        encrypted=False,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    return Config(executors=[executor])
