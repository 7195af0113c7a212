"""`FLUX_URI` is hidden in tasks in two ways that agree; brokers that tasks start get it back."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from parsl_flux_bulk.protocol import instance_uri
from parsl_flux_bulk.protocol.instance_uri import HIDING_COMMAND, INSTANCE_URI, NO_INSTANCE

URI = "local:///run/flux/local"
PATH = os.environ["PATH"]
NAMES = ("FLUX_URI", INSTANCE_URI, "FLUX_EXEC_PATH", "FLUX_EXEC_PATH_PREPEND")
COMMANDS = Path(HIDING_COMMAND[-1])


def run(*command: str | Path, **environ: str) -> dict[str, str]:
    """Return what a command that prints its environment says of these variables."""
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    return {name: found[name] for name in NAMES if name in found}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"FLUX_EXEC_PATH_PREPEND": "/a:/b"},
        {"FLUX_URI": URI},
        {"FLUX_URI": URI, "FLUX_EXEC_PATH_PREPEND": "/a:/b"},
    ],
    ids=str,
)
def test_a_command_gets_what_python_gets(environ: dict[str, str]) -> None:
    hidden = dict(environ)
    instance_uri.hide(hidden)
    assert run(*HIDING_COMMAND, "env", PATH=PATH, **environ) == hidden
    assert hidden.get("FLUX_URI") == (NO_INSTANCE if "FLUX_URI" in environ else None)
    instance_uri.forget_hidden(hidden)
    assert "FLUX_URI" not in hidden


def test_a_uri_is_not_forgotten() -> None:
    environ = {"FLUX_URI": URI}
    instance_uri.forget_hidden(environ)
    assert environ == {"FLUX_URI": URI}


def test_clients_quote_all_of_it() -> None:
    assert len(NO_INSTANCE) < 120 and ":" not in NO_INSTANCE


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A directory with a `flux-broker` that prints its environment."""
    path = tmp_path / "libexec" / "flux-broker"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\nenv\n")
    path.chmod(0o755)
    return path.parent


def test_a_broker_gets_the_uri(real: Path) -> None:
    environ = {"PATH": PATH, "FLUX_URI": URI}
    instance_uri.hide(environ)
    environ["FLUX_EXEC_PATH"] = f"{COMMANDS}:{real}"
    found = run(COMMANDS / "flux-broker", **environ)
    assert found == {"FLUX_URI": URI, INSTANCE_URI: URI, "FLUX_EXEC_PATH": str(real)}


@pytest.mark.parametrize("uri", ["ssh://host/path", ""])
def test_what_the_user_set_is_left_alone(real: Path, uri: str) -> None:
    search = f"/a:{COMMANDS}:/b"
    environ = {"FLUX_EXEC_PATH": f"{COMMANDS}:{real}", "FLUX_EXEC_PATH_PREPEND": search}
    found = run(COMMANDS / "flux-broker", PATH=PATH, FLUX_URI=uri, PARSL_WORKER_FLUX_URI=URI, **environ)
    assert (found["FLUX_URI"], found["FLUX_EXEC_PATH_PREPEND"]) == (uri, "/a:/b")


def test_copies_of_the_command_end_at_the_broker(real: Path, tmp_path: Path) -> None:
    # The tasks of an executor that a task of another has started, from another installation.
    copy = tmp_path / "copy of it" / "flux_commands"
    shutil.copytree(COMMANDS, copy)
    search = f"{copy}:{COMMANDS}:{copy}"
    environ = {"FLUX_EXEC_PATH": f"{search}:{real}", "FLUX_EXEC_PATH_PREPEND": search}
    found = run(copy / "flux-broker", PATH=PATH, FLUX_URI=NO_INSTANCE, PARSL_WORKER_FLUX_URI=URI, **environ)
    assert found == {"FLUX_URI": URI, INSTANCE_URI: URI, "FLUX_EXEC_PATH": str(real)}


def test_without_a_broker_it_says_where_it_looked() -> None:
    done = subprocess.run(
        [COMMANDS / "flux-broker"],
        env={"PATH": PATH, "FLUX_EXEC_PATH": "/a:/b"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (127, "flux-broker: not found in FLUX_EXEC_PATH=/a:/b\n")
