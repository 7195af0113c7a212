"""Checks of this machine, and of the Flux instance that runs on it."""

from __future__ import annotations

import glob
import os
import resource
import shutil
import tempfile

from parsl_flux_bulk.cli.doctor.finding import Finding, failed, ok, skipped, warning
from parsl_flux_bulk.errors import InstanceUnavailable
from parsl_flux_bulk.instances.flux.own_broker import TMPDIR_LIMIT
from parsl_flux_bulk.instances.flux.probe import Probe, probe
from parsl_flux_bulk.worker.pinning import physical_cores

FILES_LIMIT = 1024
"""Open files that an executor needs, with room: some eight a worker."""


def gpus_of_this_machine() -> int:
    """Count the GPUs by their device files: NVIDIA's, and AMD's compute nodes that are not CPUs."""
    nvidia = len(glob.glob("/dev/nvidia[0-9]*"))
    amd = 0
    for name in glob.glob("/sys/class/kfd/kfd/topology/nodes/*/gpu_id"):
        try:
            with open(name, encoding="ascii") as file:
                amd += file.read().strip() not in ("", "0")
        except OSError:
            continue
    return nvidia + amd


def instance() -> list[Finding]:
    """Check the instance in ``FLUX_URI``: reachable, guest or owner, cores and GPUs."""
    checks = "instance", "role"
    if shutil.which("flux") is None:
        return [skipped(check, "no flux on PATH") for check in checks] + [cores(None)]
    uri = os.environ.get("FLUX_URI", "")
    if not uri:
        found = ok("instance", "FLUX_URI is not set: an instance starts with each run, and ends with it")
        return [found, skipped("role", "owner of the instances that start"), cores(None)]
    remedy = "unset FLUX_URI, or set it to what `flux uri` prints for a running instance"
    if ":" not in uri:
        what = f"FLUX_URI={uri!r} is not a URI such as local:///run/flux/local"
        return [failed("instance", what, remedy), skipped("role", "no instance"), cores(None)]
    try:
        answer = probe(uri)
    except InstanceUnavailable as error:
        return [failed("instance", str(error), remedy), skipped("role", "no instance"), cores(None)]
    return [ok("instance", f"Flux {answer.version} at {uri}"), _role(answer), cores(answer)]


def _role(answer: Probe) -> Finding:
    if answer.owner == os.getuid():
        return ok("role", "owner")
    return failed(
        "role",
        f"guest (user {os.getuid()}) of an instance of user {answer.owner}: guests may not submit such jobs",
        "get an instance: flux alloc -N1, or give the executor FluxProvider as provider",
    )


def cores(answer: Probe | None) -> Finding:
    """Check the cores and GPUs of the instance, or of this machine."""
    check = "cores and GPUs"
    gpus = gpus_of_this_machine()
    if answer is None:
        return ok(check, f"{len(physical_cores())} core(s), {gpus} GPU(s) on this machine")
    capacity = answer.capacity
    found = f"{capacity.nodes} node(s), {capacity.cores} core(s), {capacity.gpus} GPU(s) in the instance"
    if not capacity.cores:
        return failed(check, found, "no node is up: `flux resource status` says why")
    if gpus and not capacity.gpus:
        return warning(
            check,
            f"{found}, but {gpus} GPU(s) on this machine",
            "jobs cannot request GPUs: hwloc in Flux does not detect them; see `flux resource list`",
        )
    return ok(check, found)


def tmpdir() -> Finding:
    """Check that the directory for temporary files can be used, also for the paths of Unix sockets."""
    check = "TMPDIR"
    directory = os.environ.get("TMPDIR") or tempfile.gettempdir()
    if not os.path.isdir(directory):
        return failed(check, f"{directory} is not a directory", "export TMPDIR=/tmp")
    if not os.access(directory, os.W_OK | os.X_OK):
        return failed(check, f"{directory} is not writable", "export TMPDIR=/tmp")
    length = len(os.fsencode(directory))
    if length > TMPDIR_LIMIT:
        return warning(
            check,
            f"{directory} has {length} bytes, at most {TMPDIR_LIMIT} fit the paths of sockets",
            "export TMPDIR=/tmp, which Flux uses instead for as long as TMPDIR is too long",
        )
    return ok(check, directory)


def open_files() -> Finding:
    """Check the limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FILES_LIMIT:
        most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        return warning("open files", f"at most {soft}", f"ulimit -n {most}")
    return ok("open files", "unlimited" if soft == resource.RLIM_INFINITY else f"at most {soft}")
