"""What blocks are launched with, how their walltime is read, and how they are let go."""

from __future__ import annotations

import ipaddress
import json
import logging
import shlex
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers import MpiExecLauncher, SrunLauncher
from parsl.providers import LocalProvider, SlurmProvider

from parsl_flux_bulk import FluxBulkExecutor
from parsl_flux_bulk.blocks.block_program import Settings
from parsl_flux_bulk.blocks.manager import Blocks, BlockSettings, addresses_of_this_host
from parsl_flux_bulk.executor.block_scaling import cores_of
from parsl_flux_bulk.instances.federation.federation import Federation
from parsl_flux_bulk.jobspec.resources import Resources, Shape
from parsl_flux_bulk.providers import FluxProvider, OncePerBlock


def test_the_addresses_of_this_host_are_numbers_and_not_its_loopback_if_it_has_others() -> None:
    addresses = [ipaddress.ip_address(address) for address in addresses_of_this_host()]
    assert addresses
    assert len({address.is_loopback for address in addresses}) == 1


# -- the launch command ------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path: Path) -> Any:
    """Return a function that starts an executor with a provider that launches nothing by itself."""
    made: list[FluxBulkExecutor] = []

    def start(provider: Any, run_id: str | None = None, **options: Any) -> FluxBulkExecutor:
        executor = FluxBulkExecutor(provider=provider, **options)
        executor.run_id = run_id
        executor.run_dir = str(tmp_path)
        provider.script_dir = str(tmp_path)
        executor.start()
        made.append(executor)
        return executor

    yield start
    for executor in made:
        executor.shutdown()


def launch_command(executor: FluxBulkExecutor) -> str:
    """The command line that the provider gets for the first block."""
    commands: list[str] = []
    provider: Any = executor.provider
    provider.submit = lambda command, *_: commands.append(command) or "11"
    provider.cancel = lambda jobs: [True for _ in jobs]
    assert executor.scale_out_facade(1) == ["0"]
    return commands[0]


def settings_of(command: str) -> dict[str, Any]:
    values = json.loads(Path(shlex.split(command)[-1]).read_text())
    assert isinstance(values, dict)
    return values


def test_flux_is_started_around_the_blocks_program(started: Any) -> None:
    executor = started(LocalProvider())
    command = launch_command(executor)
    assert command.startswith(f"flux start {sys.executable} ")
    assert command.split()[3].endswith("/parsl_flux_bulk/blocks/block_program.py")
    assert type(command) is str


def test_the_launch_line_is_plain_words_without_secrets(started: Any) -> None:
    command = launch_command(started(LocalProvider()))
    assert not set(command) & set("$`\\\"'"), "launchers put it through a shell once more"
    directory = Path(settings_of(command)["certificates"])
    for secret in directory.glob("*secret"):
        for line in secret.read_text().splitlines():
            assert "secret-key" not in line or line.split('"')[1] not in command
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        ({"launch": "flux start -Slog-stderr-level=4"}, "flux start -Slog-stderr-level=4 "),
        ({"instance": "local"}, f"{sys.executable} "),
        ({"python": "/opt/other/python", "instance": "local"}, "/opt/other/python "),
    ],
)
def test_what_starts_a_block_can_be_chosen(started: Any, options: dict[str, Any], begins: str) -> None:
    assert launch_command(started(LocalProvider(), **options)).startswith(begins)


def test_where_the_provider_starts_flux_the_program_runs_once_a_block(started: Any) -> None:
    command = launch_command(started(FluxProvider()))
    assert isinstance(command, OncePerBlock)
    assert command.startswith(sys.executable)


@pytest.mark.parametrize(
    ("launcher", "line"),
    [
        (
            SrunLauncher(overrides="--mpi=pmi2 --cpu-bind=none"),
            "srun --ntasks 3 -l --mpi=pmi2 --cpu-bind=none",
        ),
        (MpiExecLauncher(bind_cmd="--cpu-bind", overrides="--ppn 1 --pmi=pmi"), "--ppn 1 --pmi=pmi -n"),
    ],
)
def test_a_launcher_starts_it_on_every_node(started: Any, launcher: Any, line: str) -> None:
    command = launch_command(started(LocalProvider()))
    text = launcher(command, 1, 3, "/scripts")
    assert line in text
    assert command in text


# -- the settings that a block gets ------------------------------------------------------------------


def test_blocks_of_this_machine_are_for_this_machine_alone(started: Any) -> None:
    executor = started(LocalProvider(), node_init="echo hello")
    values = settings_of(launch_command(executor))
    assert values["addresses"] == ["127.0.0.1"]
    assert (values["block_id"], values["node_init"], values["walltime"]) == ("0", "echo hello", None)
    assert Settings(**values).unreachable_timeout < 120


@pytest.mark.parametrize(("address", "expected"), [(None, None), ("login1-hsn", ["login1-hsn"])])
def test_others_are_told_how_to_reach_this_host(
    started: Any, address: str | None, expected: list[str] | None
) -> None:
    provider = SlurmProvider(partition="debug", walltime="01:30:00")
    values = settings_of(launch_command(started(provider, address=address)))
    assert values["addresses"] == (expected or addresses_of_this_host())
    assert values["walltime"] == 5400.0


def test_a_provider_and_an_instance_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="instance must be None or 'local', not 'flux'"):
        FluxBulkExecutor(provider=LocalProvider(), instance="flux")


# -- Parsl's side ------------------------------------------------------------------------------------


def test_without_a_provider_there_is_nothing_to_scale() -> None:
    executor = FluxBulkExecutor()
    assert executor.status_polling_interval == 0
    assert executor.scale_in(1) == []
    assert executor.status() == {}
    assert executor.outstanding() == 0


def test_before_a_block_is_there_the_provider_says_how_large_it_is() -> None:
    assert FluxBulkExecutor(provider=LocalProvider()).workers_per_node == 1
    assert FluxBulkExecutor(provider=FluxProvider(cores_per_node=64)).workers_per_node == 64


def test_htex_auto_scale_takes_it_for_one_whose_idle_blocks_it_may_end() -> None:
    assert isinstance(FluxBulkExecutor(provider=LocalProvider()), HighThroughputExecutor)


def test_a_provider_that_fails_to_cancel_is_in_the_log_and_raises_nothing(
    started: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider: Any = LocalProvider()
    executor = started(provider, instance="local")
    jobs = iter(["11", "12"])
    monkeypatch.setattr(provider, "submit", lambda *_: next(jobs))
    assert executor.scale_out_facade(2) == ["0", "1"]

    def fail(jobs: list[str]) -> list[bool]:
        raise OSError("scancel is not there")

    monkeypatch.setattr(provider, "cancel", fail)
    with caplog.at_level(logging.WARNING):
        assert executor.scale_in_facade(1) == ["0"]
        assert "blocks=['0']: scancel is not there" in caplog.text
        monkeypatch.setattr(provider, "cancel", lambda jobs: [False for _ in jobs])
        assert executor.scale_in_facade(1) == ["1"]
    assert "cancel refused by the provider executor=FluxBulkExecutor jobs=['12']" in caplog.text


class Watched(LocalProvider):
    """LocalProvider whose blocks are looked at whenever Parsl asks."""

    status_polling_interval = 0


@pytest.mark.parametrize("handler", [True, windowed_error_handler])
def test_blocks_that_were_scaled_in_do_not_keep_the_others_from_failing(
    started: Any, handler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider: Any = Watched()
    executor = started(provider, instance="local", block_error_handler=handler)
    monkeypatch.setattr(provider, "submit", lambda *_: str(len(executor.blocks_to_job_id)))
    monkeypatch.setattr(provider, "cancel", lambda jobs: [True for _ in jobs])
    states = dict.fromkeys(map(str, range(6)), JobState.PENDING)
    monkeypatch.setattr(provider, "status", lambda jobs: [JobStatus(states[job]) for job in jobs])
    assert executor.scale_out_facade(6) == list("012345")

    def poll() -> bool:
        executor.poll_facade()
        executor.handle_errors(executor.status_facade)
        return bool(executor.bad_state_is_set)

    states.update(dict.fromkeys("012", JobState.FAILED))
    assert not poll(), "three blocks may still join"
    assert executor.scale_in_facade(3) == list("345")
    states.update(dict.fromkeys("345", JobState.CANCELLED))
    assert poll()


def test_blocks_are_counted_anew_when_a_configuration_is_loaded_again(started: Any) -> None:
    provider: Any = Watched()
    executor = started(provider, instance="local", run_id="first")
    provider.submit = lambda *_: "11"
    provider.cancel = lambda jobs: [True for _ in jobs]
    assert executor.scale_out_facade(2) == ["0", "1"]
    executor.run_id = "second"  # the first load failed, and left the executor running
    executor.start()
    assert executor.status_facade == {}
    assert executor.scale_out_facade(1) == ["0"]


def test_closing_blocks_twice_is_fine(tmp_path: Path) -> None:
    settings = BlockSettings(str(tmp_path), sys.executable, ["127.0.0.1"], listen="127.0.0.1")
    blocks = Blocks(settings, Federation(), drain=lambda _: None)
    blocks.close()
    blocks.close()
    assert not blocks.joined("0") and blocks.idle_time("0") == float("inf")


def test_a_block_that_never_joined_is_let_go_at_once(tmp_path: Path) -> None:
    settings = BlockSettings(str(tmp_path), sys.executable, ["127.0.0.1"], listen="127.0.0.1")
    blocks = Blocks(settings, Federation(), drain=lambda _: None)
    told: list[str] = []
    blocks.retire("5", then=lambda: told.append("5"))
    blocks.close()
    assert told == ["5"]


# -- what tasks need, in slots -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("specification", "slots"),
    [
        ({}, 1),
        ({"cores_per_task": 4}, 4),
        ({"cores_per_task": 5}, 8),  # a node of 8 has room for one
        ({"cores_per_task": 3}, 4),  # and for two of these
        ({"cores_per_task": 1, "gpus_per_task": 1}, 4),  # half of the node's GPUs
        ({"num_tasks": 3}, 3),
        ({"num_nodes": 2}, 16),
        ({"num_nodes": 1, "num_tasks": 2, "exclusive": True}, 8),
        ({"cores_per_task": 99}, 8),  # fits nowhere; not more than a node
    ],
)
def test_a_task_counts_with_its_share_of_a_node(specification: dict[str, Any], slots: float) -> None:
    resources = Resources.from_specification(specification)
    assert cores_of(resources.shape or resources, cores=8, gpus=2) == slots


@pytest.mark.parametrize(
    ("shape", "bound", "slots"),
    [
        (Shape(0.5), None, 0.5),
        (Shape(1, 0.25), None, 1),
        (Shape(1), 2, 4),  # two workers divide the node
        (Shape(0.5), 16, 0.5),
    ],
)
def test_workers_that_share_count_with_their_part(shape: Shape, bound: int | None, slots: float) -> None:
    assert cores_of(shape, 8, 2, bound) == slots


def test_gpus_do_not_count_where_no_node_is_known_to_have_any() -> None:
    assert cores_of(Shape(1, 2), cores=8, gpus=0) == 1
