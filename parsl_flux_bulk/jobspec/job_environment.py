"""What jobs take over from the process that submits them, as ``flux run`` would: environment and limits."""

from __future__ import annotations

import fnmatch
import re
import resource
from collections.abc import Mapping

LAUNCHER_VARIABLES = (
    "SLURM_*",
    "PMI_*",
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
)
"""By these an enclosing ``srun``, ``mpiexec`` or ``aprun`` tells a program which rank it is, and of what.

In a job of ours they would tell MPI of the wrong launcher. What a user may have set by hand to tune MPI,
such as ``OMPI_MCA_btl`` or ``MPIR_CVAR_*``, is not among them. Flux's broker removes most of them from the
environment that it starts in, but it never sees that of a process which attaches to it.
"""

_LAUNCHER = re.compile("|".join(map(fnmatch.translate, LAUNCHER_VARIABLES)))

_NOT_PROPAGATED = {"memlock", "ofile", "msgqueue", "nice", "rtprio", "rttime", "sigpending"}
"""Limits of a machine rather than of a user's work; ``flux run`` leaves them alone too."""


def base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of an environment is for programs that Flux starts.

    That is without `LAUNCHER_VARIABLES`, and with ``SHLVL``. Standard input is a socket in Flux, and with
    that bash takes itself for the shell of a remote login and reads the user's ``~/.bashrc``, unless
    ``SHLVL`` tells that it is none (bash(1), *INVOCATION*). Cron, systemd and tox start scripts without it.
    """
    variables = {name: value for name, value in environ.items() if not _LAUNCHER.match(name)}
    if variables.get("SHLVL", "0") in ("", "0"):
        variables["SHLVL"] = "1"
    return variables


def soft_limits() -> dict[str, int]:
    """The soft limits of this process that jobs get, by lower-case name; -1 is without limit.

    See also
    --------
    flux-run(1), ``--rlimit``
    """
    names = (name for name in dir(resource) if name.startswith("RLIMIT_"))
    limits = {name[7:].lower(): resource.getrlimit(getattr(resource, name))[0] for name in names}
    return {name: soft for name, soft in limits.items() if name not in _NOT_PROPAGATED}
