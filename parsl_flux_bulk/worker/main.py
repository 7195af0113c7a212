"""The program of every job that runs Python: ``python .../parsl_flux_bulk/worker/main.py``, by path.

``PARSL_FLUX_BULK_MODE`` selects the mode: ``manager`` (a node of a worker job, :mod:`.manager`) or ``task``
(a rank of a task job, :mod:`.mpi_rank`).

Started by path, a job runs the executor's version of this package whether or not any version is installed on
its node. Neither ``sys.path`` nor ``__main__`` keeps a trace of this package that could shadow the user's
modules and functions.
"""

from __future__ import annotations

import os
import sys


def import_own_package() -> None:
    """Import the package that this file belongs to, without leaving its directory on ``sys.path``."""
    directory = os.path.dirname(os.path.abspath(__file__))
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        # The interpreter put this directory first: `import channel` would find this package's module.
        del sys.path[0]
    sys.path.insert(0, os.path.dirname(os.path.dirname(directory)))
    try:
        import parsl_flux_bulk  # noqa: F401  (later imports find its submodules through it)
    finally:
        del sys.path[0]


def clean_main() -> None:
    """Replace ``__main__`` by an empty module, for functions that are rebuilt in ``__main__``.

    Without ``__file__``, it also keeps ``multiprocessing`` from running this script again.
    """
    sys.modules["__main__"] = type(sys)("__main__")


def main() -> int:
    """Run the selected mode; return the exit status."""
    import_own_package()
    clean_main()
    from parsl_flux_bulk.protocol.variables import MODE
    from parsl_flux_bulk.worker.channel import ChannelLost

    mode = os.environ.get(MODE)
    try:
        if mode == "manager":
            from parsl_flux_bulk.worker import manager

            return manager.main()
        if mode == "task":
            from parsl_flux_bulk.worker import mpi_rank

            return mpi_rank.main()
    except ChannelLost as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    print(f"worker: {MODE} is {mode!r}: expected 'manager' or 'task'", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
