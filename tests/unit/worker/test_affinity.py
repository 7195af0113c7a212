"""How a pool divides its node among its workers."""

from __future__ import annotations

import pytest

from parsl_flux_bulk.worker.affinity import bindings, group_cores, parse_list


def hyperthreads(cores):
    """CPUs n and n + cores are one core, as Linux usually numbers them."""
    return lambda cpu: [cpu % cores, cpu % cores + cores]


def shares(environ, cpus):
    return [binding.cpus for binding in bindings(environ, cpus)]


@pytest.fixture(autouse=True)
def one_thread_a_core(monkeypatch):
    monkeypatch.setattr(group_cores, "__defaults__", (lambda cpu: [cpu],))


def test_the_kernels_lists():
    assert parse_list("0,4-6\n") == [0, 4, 5, 6]


def test_hyperthreads_stay_together():
    assert group_cores({0, 1, 4, 5}, hyperthreads(4)) == [(0, 4), (1, 5)]


def test_only_those_siblings_that_we_may_use():
    assert group_cores({0, 1, 5}, hyperthreads(4)) == [(0,), (1, 5)]


def test_as_many_workers_as_fit_each_with_its_own_cores():
    assert shares({"PARSL_FLUX_BULK_CORES": "2"}, range(7)) == [(0, 1), (2, 3), (4, 5)]


def test_one_core_each_is_the_default():
    assert shares({}, {3, 5}) == [(3,), (5,)]


def test_there_is_always_one_worker():
    assert shares({"PARSL_FLUX_BULK_CORES": "8"}, {0, 1}) == [()]


def test_workers_that_outnumber_the_cores_share_them():
    assert shares({"PARSL_FLUX_BULK_SLOTS": "64"}, {0, 1}) == [()] * 64


def test_a_given_number_of_workers_that_fits_is_pinned():
    assert shares({"PARSL_FLUX_BULK_SLOTS": "2"}, range(4)) == [(0,), (1,)]


def test_each_worker_sees_its_own_gpus():
    found = bindings({"PARSL_FLUX_BULK_GPUS": "2", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}, range(8))

    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in found] == ["4,5", "6,7"]


def test_gpus_that_no_worker_asked_for_are_left_alone():
    (found,) = bindings({"CUDA_VISIBLE_DEVICES": "-1"}, {0})

    assert "CUDA_VISIBLE_DEVICES" not in found.environment


def test_lists_that_count_from_what_rocr_leaves_visible():
    environ = {
        "PARSL_FLUX_BULK_GPUS": "2",
        "ROCR_VISIBLE_DEVICES": "0,1,2,3",
        "HIP_VISIBLE_DEVICES": "0,1,2,3",
    }

    second = bindings(environ, range(2))[1]

    assert second.environment["ROCR_VISIBLE_DEVICES"] == "2,3"
    assert second.environment["HIP_VISIBLE_DEVICES"] == "0,1"


def test_workers_know_their_number():
    found = bindings({}, range(3))

    assert [share.environment["PARSL_WORKER_RANK"] for share in found] == ["0", "1", "2"]
