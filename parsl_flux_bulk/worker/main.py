"""What a job runs that carries Python: ``python .../parsl_flux_bulk/worker/main.py``, by path.

The environment says the rest: ``PARSL_FLUX_BULK_MODE`` is ``pool`` (a node of a worker job,
:mod:`.pool`), ``task`` (a rank of a task job, :mod:`.rank`) or ``keeper`` (the initial program of a Flux
instance inside another, :mod:`.keeper`), and :mod:`.channel` lists how the executor is reached.

By path, so that it is this very version that runs, whatever is installed where the job runs, and so that
nothing has to be installed there. What this file does is make room for the user's code: nothing of ours may
stand before the user's modules on ``sys.path``, nor in the ``__main__`` that functions are rebuilt in.
"""

from __future__ import annotations

import os
import sys


def import_own_package() -> None:
    """Import the package that this file belongs to, leaving no trace of it on ``sys.path``."""
    directory = os.path.dirname(os.path.abspath(__file__))
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        # The interpreter put this directory first: `import codec` would find ours, not the user's.
        del sys.path[0]
    sys.path.insert(0, os.path.dirname(os.path.dirname(directory)))
    try:
        import parsl_flux_bulk  # noqa: F401  (its submodules are found through it from now on)
    finally:
        del sys.path[0]


def clean_main() -> None:
    """Give functions that are rebuilt as living in ``__main__`` an empty one.

    Without a file of its own, it also keeps ``multiprocessing`` from running this script again.
    """
    sys.modules["__main__"] = type(sys)("__main__")


def main() -> int:
    """Run what the environment says; return the exit status."""
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
        if mode == "inner_instance":
            from parsl_flux_bulk.worker import inner_instance

            return inner_instance.main()
    except ChannelLost as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    print(f"worker: {MODE} is {mode!r}: expected 'manager', 'task' or 'inner_instance'", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
