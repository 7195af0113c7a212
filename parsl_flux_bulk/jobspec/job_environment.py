"""Environment and limits that jobs inherit from the submitting process, as with ``flux run``."""

from __future__ import annotations

import fnmatch
import re
import resource
from collections.abc import Iterable, Mapping

LAUNCHER_VARIABLES = (
    "SLURM_*",
    "PMI_*",
    "PMI2_*",
    "PMIX_*",
    "PALS_*",
    "PRTE_*",
    "HYDI_*",
    "HYDRA_*",
    "MPI_LOCALNRANKS",
    "MPI_LOCALRANKID",
    "I_MPI_PMI_LIBRARY",
    "FLUX_PMI_LIBRARY_PATH",
    "OMPI_COMM_WORLD_*",
    "OMPI_UNIVERSE_SIZE",
    "OMPI_APP_CTX_NUM_PROCS",
    "OMPI_FIRST_RANKS",
    "OMPI_NUM_APP_CTX",
    "OMPI_MCA_ess*",
    "OMPI_MCA_orte_*",
    "OMPI_MCA_pmix*",
    "PARSL_WORKER_*",
)
"""Variables with which an enclosing ``srun``, ``mpiexec``, ``aprun`` or worker tells a program its rank.

In a job they would lead MPI to the wrong launcher. Variables that tune MPI, such as ``OMPI_MCA_btl`` or
``MPIR_CVAR_*``, are not in the list. Flux's broker removes most of these variables from its own
environment, but not from that of a process that attaches to it.
"""

_LAUNCHER = re.compile("|".join(map(fnmatch.translate, LAUNCHER_VARIABLES)))

_NOT_PROPAGATED = {"memlock", "ofile", "msgqueue", "nice", "rtprio", "rttime", "sigpending"}
"""Limits of a machine rather than of a user's work; ``flux run`` does not propagate them either."""

_UNLIMITED = ("unlimited", "infinity", "inf")


def base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without `LAUNCHER_VARIABLES`, and with ``SHLVL``.

    Standard input is a socket in Flux. Without ``SHLVL``, bash then assumes a remote login and reads
    ``~/.bashrc`` (bash(1), *INVOCATION*). Cron, systemd and tox start scripts without ``SHLVL``.
    """
    variables = {name: value for name, value in environ.items() if not _LAUNCHER.match(name)}
    if variables.get("SHLVL", "0") in ("", "0"):
        variables["SHLVL"] = "1"
    return variables


def soft_limits() -> dict[str, int]:
    """Return the soft limits of this process that jobs inherit, by lower-case name; -1 is unlimited.

    See also
    --------
    flux-run(1), ``--rlimit``
    """
    return {name: soft for name, soft in _all_soft_limits().items() if name not in _NOT_PROPAGATED}


def filtered_limits(rules: Iterable[str]) -> dict[str, int]:
    """Return the soft limits of jobs after the rules of ``--rlimit``: ``NAME``, ``NAME=VALUE``, ``-PATTERN``.

    Raises
    ------
    ValueError
        If a limit does not exist, or a value is not one.
    """
    limits, known = soft_limits(), _all_soft_limits()
    for rule in (part for text in rules for part in text.split(",")):
        name, equals, value = rule.lower().partition("=")
        if name.startswith("-"):
            limits = {key: soft for key, soft in limits.items() if not fnmatch.fnmatchcase(key, name[1:])}
            continue
        matching = {key: soft for key, soft in known.items() if fnmatch.fnmatchcase(key, name)}
        if not matching or (equals and name not in known):
            raise ValueError(f"{name!r} is not a limit; there are {', '.join(known)}")
        if equals and value not in _UNLIMITED and not (value.isascii() and value.isdigit()):
            raise ValueError(f"{name} must be a number or 'unlimited', not {value!r}")
        if equals:
            matching = {name: -1 if value in _UNLIMITED else int(value)}
        limits.update(matching)
    return limits


def _all_soft_limits() -> dict[str, int]:
    names = (name for name in dir(resource) if name.startswith("RLIMIT_"))
    return {name[7:].lower(): resource.getrlimit(getattr(resource, name))[0] for name in names}
