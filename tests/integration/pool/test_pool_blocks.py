"""FluxPoolExecutor with a provider of blocks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import wait_until
from parsl.providers import LocalProvider
from pool_calls import where_it_runs

from parsl_flux_bulk import FluxPoolExecutor

BOUND = 90.0


class Local(LocalProvider):
    """LocalProvider whose blocks are looked at often."""

    status_polling_interval = 0.5


@pytest.mark.parametrize("kind", ["local", pytest.param("flux", marks=pytest.mark.flux)])
def test_tasks_request_the_block_that_runs_them(kind: str, tmp_path: Path) -> None:
    provider = Local(init_blocks=0, min_blocks=0, max_blocks=1)
    instance = "local" if kind == "local" else None
    with FluxPoolExecutor(2, provider=provider, instance=instance, working_dir=str(tmp_path)) as pool:
        block, pid, parent = pool.submit(where_it_runs).result(BOUND)
        assert block == "0"
        assert os.getpid() not in (pid, parent)
        assert list(pool.map(pow, range(1_000), [2] * 1_000)) == [n * n for n in range(1_000)]
        assert not pool.has_one_node(), "the next block may be anywhere"
        alone = pool.with_resources(num_tasks=1)
        assert alone.submit(where_it_runs).result(BOUND)[0] == "0"
        assert len(provider.resources) == 1
    wait_until(lambda: not os.path.exists(f"/proc/{parent}"), BOUND)
