"""A backend of joblib, and so of scikit-learn: ``import parsl_flux_bulk.joblib`` registers it as ``"flux"``.

::

    with joblib.parallel_config("flux", n_jobs=8):
        cross_val_score(model, x, y)
"""

from __future__ import annotations

import copy
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import joblib
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from parsl_flux_bulk.pool.executor import FluxPoolExecutor
from parsl_flux_bulk.worker.packets import MemoryFile

_in_worker = False


def _call(batch: Callable[[], Any]) -> Any:
    global _in_worker
    _in_worker = True
    return batch()


class _File:
    """Stands for a large array in a call: the worker maps a file into memory."""

    def __init__(self, path: str, mode: str, identity: tuple[int, int] | None = None) -> None:
        self._path = path
        self._mode = mode
        self._identity = identity

    def __reduce__(self) -> Any:
        return _load, (self._path, self._mode, self._identity)


def _load(path: str, mode: Any, identity: tuple[int, int] | None) -> Any:
    """Map an array into memory; one of a file in memory must be that of the script."""
    if identity is not None and _identity(path) != identity:
        raise FileNotFoundError(
            f"{path}: a large array is in the memory of the script's node, and {os.uname().nodename} is "
            "another node, which joined the instance later: name a directory that both share, as temp_folder"
        )
    return importlib.import_module("numpy").load(path, mmap_mode=mode, allow_pickle=False)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _path_of(file: MemoryFile) -> str:
    """Return a path by which other processes of this node open a file; it ends with this process."""
    return f"/proc/{os.getpid()}/fd/{file.descriptor}"


class FluxBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # they have no types
    """Run joblib's batches in a FluxPoolExecutor, which lives as long as the backend.

    Parameters
    ----------
    executor : Executor or None
        The executor to use. None makes one with `n_jobs` workers.
    inner_max_num_threads : int or None
        Threads that numerical libraries may use in a worker, which has as many cores.
    **options
        Other parameters of the FluxPoolExecutor that is made, and joblib's own.
    """

    default_n_jobs = -1
    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        executor: Executor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._given = executor
        self._options = options
        self._executor = executor
        self._n_jobs: int | None = None
        self._futures: set[Future[Any]] = set()
        self._files: dict[int, tuple[Any, _File, MemoryFile | None]] = {}
        self._directory = ""
        self._shares_memory: bool | None = None

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        max_nbytes: int | None = 1 << 20,
        mmap_mode: str | None = "r",
        temp_folder: str | None = None,
        **_: Any,
    ) -> int:
        """Make the executor, and return the number of workers."""
        if _in_worker and self._given is None:
            # An executor of its own could wait for the cores of this worker for ever.
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._max_nbytes = max_nbytes if mmap_mode else None
        self._mmap_mode = mmap_mode or "r"
        self._temp_folder = temp_folder or os.environ.get("JOBLIB_TEMP_FOLDER")
        n_jobs = self.effective_n_jobs(n_jobs)
        if self._given is None and n_jobs != self._n_jobs:
            self._executor = self._new_executor(n_jobs)
            self._n_jobs = n_jobs
        return n_jobs

    def _new_executor(self, n_jobs: int | None) -> Executor:
        threads = self.inner_max_num_threads
        if threads is None:
            return FluxPoolExecutor(n_jobs, **self._options)
        variables = dict.fromkeys(self.MAX_NUM_THREADS_VARS, str(threads))
        options = {**self._options, "environment": {**variables, **self._options.get("environment", {})}}
        return FluxPoolExecutor(n_jobs, **options).with_resources(cores_per_task=threads)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of workers: -1 stands for those that fit the instance, -2 for one fewer."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning: give a number, or -1 for all")
        if n_jobs is None or n_jobs > 0:
            return n_jobs or 1
        if _in_worker:
            return 1
        if self._executor is None:
            self._executor = self._new_executor(None)
        slots: Callable[[], int] = getattr(self._executor, "slots", joblib.cpu_count)
        return max(1, slots() + 1 + n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Future[Any]], None] | None = None) -> Any:
        """Run a batch."""
        assert self._executor is not None, "configure comes first"
        if self._max_nbytes is not None and "numpy" in sys.modules and hasattr(func, "items"):
            func = copy.copy(func)
            func.items = [
                (function, [*map(self._in_file, args)], {k: self._in_file(v) for k, v in kwargs.items()})
                for function, args, kwargs in func.items
            ]
        # Joblib holds its lock, and bounds the batches itself.
        submit = getattr(self._executor, "submit_now", self._executor.submit)
        future = submit(_call, func)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def _in_file(self, value: Any) -> Any:
        """Return what stands for a value in a call: a large array is written to a file, once."""
        numpy: Any = sys.modules["numpy"]
        if type(value) not in (numpy.ndarray, numpy.memmap) or value.dtype.hasobject:
            return value
        if value.nbytes <= (self._max_nbytes or 0):
            return value
        if id(value) not in self._files:
            save = self._in_memory if self._workers_share_memory() else self._on_disk
            self._files[id(value)] = (value, *save(value))
        return self._files[id(value)][1]

    def _on_disk(self, value: Any) -> tuple[_File, None]:
        # In the current directory by default, which the nodes share, as the directory of the output.
        self._directory = self._directory or tempfile.mkdtemp(
            prefix=".joblib-", dir=self._temp_folder or os.getcwd()
        )
        path = os.path.join(self._directory, f"{len(self._files)}.npy")
        sys.modules["numpy"].save(path, value)
        return _File(path, self._mmap_mode), None

    def _in_memory(self, value: Any) -> tuple[_File, MemoryFile]:
        file = MemoryFile.empty()
        path = _path_of(file)
        with open(file.descriptor, "wb", closefd=False) as stream:
            sys.modules["numpy"].save(stream, value)
        return _File(path, self._mmap_mode, _identity(path)), file

    def _workers_share_memory(self) -> bool:
        """Return whether workers, being on this node, can open the files in memory of this process."""
        has_one_node: Callable[[], bool] | None = getattr(self._executor, "has_one_node", None)
        if self._temp_folder or has_one_node is None or self._executor is None:
            return False
        if self._shares_memory is None:
            probe = MemoryFile.empty()
            path = _path_of(probe)
            self._shares_memory = self._executor.submit(_identity, path).result() == _identity(path)
        return self._shares_memory and has_one_node()

    def retrieve_result_callback(self, future: Future[Any]) -> Any:
        """Return the results of a batch, or raise its exception."""
        return future.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End all batches, also running ones."""
        for future in list(self._futures):
            future.cancel()

    def terminate(self) -> None:
        """Forget the times and the files of this call; the workers stay for the next."""
        self.reset_batch_stats()
        self._files.clear()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = ""
        self.parallel = None  # a reference cycle otherwise, which would keep the executor


joblib.register_parallel_backend("flux", FluxBackend)
