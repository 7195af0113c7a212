"""What is taken for a bash app, and what jobs take over from the process that submits them."""

from __future__ import annotations

import functools

import parsl
import pytest
from commands import command
from parsl.app.bash import remote_side_bash_executor
from parsl.app.errors import AppTimeout, wrap_error
from parsl.data_provider.files import File
from parsl.monitoring.radios.filesystem import FilesystemRadio
from parsl.monitoring.remote import monitor_wrapper

from parsl_flux_bulk.executor import bash_apps
from parsl_flux_bulk.jobspec.job_environment import base_environment, soft_limits
from parsl_flux_bulk.jobspec.resources import Resources

APP = parsl.bash_app(command).wrapped_remote_function


def monitored():
    function, _, _ = monitor_wrapper(
        f=APP, args=(), kwargs={}, x_try_id=0, x_task_id=0, radio_config=FilesystemRadio(), run_id="",
        logging_level=0, sleep_dur=0.0, monitor_resources=False, run_dir="",
    )  # fmt: skip
    return function


def staged(function):
    return lambda *args, **kwargs: function(*args, **kwargs)


def test_a_bash_app_is_recognised():
    assert bash_apps.recognize(APP) is command


@pytest.mark.parametrize(
    "function",
    [
        monitored(),
        staged(APP),
        command,
        wrap_error(command),
        wrap_error(functools.partial(command, "true")),
        wrap_error(functools.partial(remote_side_bash_executor, command, "true")),
        wrap_error(functools.partial(remote_side_bash_executor, command, walltime=1)),
    ],
)
def test_nothing_else_is(function):
    assert bash_apps.recognize(function) is None
    assert bash_apps.without_parsl(function) is function


@pytest.mark.parametrize(
    ("walltime", "duration", "limit"),
    [
        (None, 0, 0),
        (2, 0, 2),
        (0.25, 0, 0.25),
        (2, 1, 1),
        (2, 3, 2),
    ],
)
def test_the_shorter_of_walltime_and_duration_is_the_jobs(tmp_path, walltime, duration, limit):
    resources = Resources(duration=duration)
    rendered, limited = bash_apps.render(command, ("true",), {"walltime": walltime}, resources, str(tmp_path))
    allowance = bash_apps.START_ALLOWANCE if limit == walltime else 0
    assert limited.duration == limit + allowance
    assert rendered.walltime == (walltime if limit == walltime else None)


def test_a_walltime_of_nothing_is_over(tmp_path):
    with pytest.raises(AppTimeout, match="App command exceeded walltime: 0 seconds"):
        bash_apps.render(command, ("true",), {"walltime": 0}, Resources(), str(tmp_path))


def test_outputs_in_a_directory_that_only_flux_knows():
    kwargs = {"outputs": [File("made")]}
    with pytest.raises(ValueError, match="outputs: 'made' is relative"):
        bash_apps.render(command, ("true",), kwargs, Resources(cwd="{{tmpdir}}"), "/")


def test_the_environment_of_jobs_is_without_what_a_launcher_set():
    stay = {
        "PATH": "/bin",
        "OMPI_MCA_btl": "self",
        "MPIR_CVAR_X": "1",
        "MY_SLURM_X": "1",
        "PMIX": "1",
        "FLUX_URI": "u",
        "SHLVL": "3",
    }
    go = ["SLURM_JOB_ID", "PMI_RANK", "PMIX_RANK", "PALS_APID", "I_MPI_PMI_LIBRARY", "OMPI_COMM_WORLD_RANK"]
    assert base_environment({**stay, **dict.fromkeys(go, "x")}) == stay


@pytest.mark.parametrize("before", [{}, {"SHLVL": ""}, {"SHLVL": "0"}])
def test_bash_is_told_that_it_is_no_remote_login(before):
    assert base_environment(before) == {"SHLVL": "1"}


@pytest.mark.flux
def test_the_limits_of_jobs_are_those_of_flux_run():
    utils = pytest.importorskip("flux.job._utils", reason="this Flux keeps its limits elsewhere")
    assert soft_limits() == utils.get_filtered_rlimits()
