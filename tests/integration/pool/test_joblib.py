"""The backend of joblib, embedded and on Flux."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pool_calls import fail_at, file_of, kind_and_sum, nested, nested_in_flux, where_it_runs

joblib = pytest.importorskip("joblib")

import parsl_flux_bulk.joblib  # noqa: E402
from parsl_flux_bulk import FluxPoolExecutor  # noqa: E402


@pytest.fixture
def pool(where: str, tmp_path: Path) -> Iterator[FluxPoolExecutor]:
    with FluxPoolExecutor(instance=where, working_dir=str(tmp_path)) as pool:
        yield pool


@pytest.fixture
def flux_backend(pool: FluxPoolExecutor) -> Iterator[FluxPoolExecutor]:
    with joblib.parallel_config("flux", n_jobs=2, executor=pool):
        yield pool


def test_calls_run_in_workers_in_order(flux_backend: FluxPoolExecutor) -> None:
    squares = joblib.Parallel(batch_size=100)(joblib.delayed(pow)(n, 2) for n in range(3_000))
    assert squares == [n * n for n in range(3_000)]
    # Each of joblib's batches is a task; the first and the last are small.
    assert flux_backend.status_report().tasks.done < 100  # type: ignore[union-attr]
    assert joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(3_000)) == squares
    assert os.getpid() not in {pid for _, pid, _ in joblib.Parallel()([joblib.delayed(where_it_runs)()] * 4)}


def test_nested_calls(flux_backend: FluxPoolExecutor) -> None:
    # Workers hold all cores: an inner executor would never get any.
    outcome = joblib.Parallel()(joblib.delayed(nested_in_flux)(n) for n in range(3))
    assert outcome == [[1, 0, 0], [1, 1, 1], [1, 2, 4]]
    assert joblib.Parallel()(joblib.delayed(nested)(n) for n in range(3)) == [[1, 0, 0], [1, 1, 1], [1, 2, 4]]


def test_an_exception_ends_the_call_and_running_batches(flux_backend: FluxPoolExecutor) -> None:
    with pytest.raises(LookupError):
        joblib.Parallel()(joblib.delayed(fail_at)(n, 3) for n in range(100))
    begun = time.monotonic()
    with pytest.raises(LookupError):
        joblib.Parallel()([joblib.delayed(time.sleep)(60), joblib.delayed(fail_at)(3, 3)])
    assert joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(9)) == list(range(9))
    assert time.monotonic() - begun < 60, "the sleep was ended, and not waited for"


def test_a_large_array_is_a_file_for_all_calls(
    flux_backend: FluxPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy = pytest.importorskip("numpy")
    monkeypatch.chdir(tmp_path)
    large, small = numpy.arange(1 << 18), numpy.arange(10)
    seen = joblib.Parallel()(joblib.delayed(kind_and_sum)(large, other=small) for _ in range(5))
    assert seen == [("memmap", "ndarray", int(large.sum() + small.sum()))] * 5
    assert (
        joblib.Parallel(max_nbytes=None)([joblib.delayed(kind_and_sum)(large, small)] * 2)[0][0] == "ndarray"
    )
    assert not list(tmp_path.glob(".joblib-*"))


def test_a_large_array_is_in_memory_where_all_workers_are_on_this_node(
    flux_backend: FluxPoolExecutor, tmp_path: Path
) -> None:
    numpy = pytest.importorskip("numpy")
    large, fortran = numpy.ones(1 << 18), numpy.asfortranarray(numpy.arange(1 << 19).reshape(-1, 2))
    files = joblib.Parallel()(joblib.delayed(file_of)(large) for _ in range(5))
    assert len(set(files)) == 1
    assert files[0].startswith(f"/proc/{os.getpid()}/fd/")
    targets = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [target for target in targets if "parsl_flux_bulk" in target], "its memory is free again"
    kind, _, total = joblib.Parallel()([joblib.delayed(kind_and_sum)(fortran, fortran)])[0]
    assert (kind, total) == ("memmap", 2 * int(fortran.sum()))
    files = joblib.Parallel(temp_folder=str(tmp_path))(joblib.delayed(file_of)(large) for _ in range(5))
    assert Path(files[0]).parent.parent == tmp_path
    assert not list(tmp_path.glob(".joblib-*"))


def test_an_array_in_the_memory_of_another_node_is_an_error(tmp_path: Path) -> None:
    other = tmp_path / "not-that-file"
    other.touch()
    with pytest.raises(FileNotFoundError, match=r"another node.*temp_folder"):
        parsl_flux_bulk.joblib._load(str(other), "r", (1, 2))  # noqa: SLF001
    with pytest.raises(FileNotFoundError, match="another node"):
        parsl_flux_bulk.joblib._load(f"{other}-missing", "r", (1, 2))  # noqa: SLF001


def test_results_as_a_generator(flux_backend: FluxPoolExecutor) -> None:
    results = joblib.Parallel(return_as="generator")(joblib.delayed(abs)(-n) for n in range(50))
    assert list(results) == list(range(50))


def test_the_backend_makes_an_executor_of_its_own(where: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"instance": where, "working_dir": str(tmp_path)}
    with joblib.parallel_config("flux", **options):
        assert joblib.effective_n_jobs() == joblib.effective_n_jobs(-1) >= 1
    with joblib.parallel_config("flux", inner_max_num_threads=1, n_jobs=2, **options):
        threads = joblib.Parallel()(joblib.delayed(os.getenv)(name) for name in ["OMP_NUM_THREADS"] * 3)
    assert threads == ["1"] * 3
    with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
        parsl_flux_bulk.joblib.FluxBackend(**options).effective_n_jobs(0)
    gc.collect()  # frames of joblib and of pytest may have kept the backends, and so their executors


def test_scikit_learn(flux_backend: FluxPoolExecutor) -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score

    x, y = make_classification(n_samples=200, random_state=0)
    scores = cross_val_score(LogisticRegression(), x, y, cv=4)
    with joblib.parallel_config("sequential"):
        assert list(scores) == list(cross_val_score(LogisticRegression(), x, y, cv=4))
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=3).fit(x, y)
    assert search.best_params_["C"] in (0.1, 1.0)
    # Of four and six fits, of which joblib may put several in a task.
    assert flux_backend.status_report().tasks.done >= 4  # type: ignore[union-attr]
