"""How a manager divides its node among its workers."""

from __future__ import annotations

import pytest

from parsl_flux_bulk.worker.pinning import bindings, physical_cores


@pytest.fixture
def siblings(tmp_path):
    """Files of 4 cores with two threads each, of which CPUs n and n + 4 are one, as Linux numbers them."""
    for cpu in range(8):
        (tmp_path / str(cpu)).write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    return f"{tmp_path}/{{}}"


def cores(*cpus):
    """Cores with one thread each."""
    return [(cpu,) for cpu in cpus]


def cpus_of(environ, cores):
    return [binding.cpus for binding in bindings(environ, cores)]


def test_hyperthreads_stay_together(siblings):
    assert physical_cores({0, 1, 4, 5}, siblings) == [(0, 4), (1, 5)]


def test_siblings_outside_the_allowed_cpus_are_left_out(siblings):
    assert physical_cores({0, 1, 5}, siblings) == [(0,), (1, 5)]


def test_without_a_topology_each_cpu_is_a_core(tmp_path):
    assert physical_cores({0, 1}, f"{tmp_path}/{{}}") == [(0,), (1,)]


def test_as_many_workers_as_fit_each_with_its_own_cores():
    assert cpus_of({"PARSL_FLUX_BULK_CORES": "2"}, cores(*range(7))) == [(0, 1), (2, 3), (4, 5)]


def test_one_core_each_is_the_default():
    assert cpus_of({}, cores(3, 5)) == [(3,), (5,)]


def test_there_is_always_one_worker():
    assert cpus_of({"PARSL_FLUX_BULK_CORES": "8"}, cores(0, 1)) == [()]


def test_workers_that_outnumber_the_cores_share_them():
    assert cpus_of({"PARSL_FLUX_BULK_SLOTS": "64"}, cores(0, 1)) == [()] * 64


def test_a_given_number_of_workers_that_fits_is_pinned():
    assert cpus_of({"PARSL_FLUX_BULK_SLOTS": "2"}, cores(*range(4))) == [(0,), (1,)]


def test_each_worker_sees_its_own_gpus():
    found = bindings({"PARSL_FLUX_BULK_GPUS": "2", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}, cores(*range(8)))

    assert [binding.environment["CUDA_VISIBLE_DEVICES"] for binding in found] == ["4,5", "6,7"]


def test_gpus_that_no_worker_asked_for_are_left_alone():
    (found,) = bindings({"CUDA_VISIBLE_DEVICES": "-1"}, cores(0))

    assert "CUDA_VISIBLE_DEVICES" not in found.environment


def test_lists_that_count_from_what_rocr_leaves_visible():
    environ = {
        "PARSL_FLUX_BULK_GPUS": "2",
        "ROCR_VISIBLE_DEVICES": "0,1,2,3",
        "HIP_VISIBLE_DEVICES": "0,1,2,3",
    }

    second = bindings(environ, cores(0, 1))[1]

    assert second.environment["ROCR_VISIBLE_DEVICES"] == "2,3"
    assert second.environment["HIP_VISIBLE_DEVICES"] == "0,1"


def test_workers_know_their_number():
    found = bindings({}, cores(0, 1, 2))

    assert [binding.environment["PARSL_WORKER_RANK"] for binding in found] == ["0", "1", "2"]


def test_slots_are_the_cores_that_the_job_got_not_the_cpus():
    assert cpus_of({"PARSL_FLUX_BULK_NODE_CORES": "16"}, cores(0, 1)) == [()] * 16


def test_wide_workers_of_an_oversubscribed_node():
    environ = {"PARSL_FLUX_BULK_NODE_CORES": "8", "PARSL_FLUX_BULK_CORES": "4"}

    assert cpus_of(environ, cores(0, 1)) == [(), ()]


def test_cpus_of_other_jobs_are_not_taken_where_the_instance_does_not_pin():
    assert cpus_of({"PARSL_FLUX_BULK_NODE_CORES": "2"}, cores(*range(8))) == [(), ()]


def test_a_job_pinned_to_its_cores_pins_its_workers():
    assert cpus_of({"PARSL_FLUX_BULK_NODE_CORES": "2"}, cores(4, 5)) == [(4,), (5,)]


def test_a_template_that_flux_does_not_know_counts_as_unknown():
    assert cpus_of({"PARSL_FLUX_BULK_NODE_CORES": "{{node.ncores}}"}, cores(4, 5)) == [(4,), (5,)]


def test_workers_of_a_unit_share_its_core_where_it_has_only_one():
    environ = {"PARSL_FLUX_BULK_SHARING": "2"}

    assert cpus_of(environ, cores(4, 5)) == [(4,), (4,), (5,), (5,)]


def test_workers_of_a_unit_have_cores_of_their_own_where_it_has_enough():
    environ = {"PARSL_FLUX_BULK_SHARING": "2", "PARSL_FLUX_BULK_CORES": "5"}

    assert cpus_of(environ, cores(*range(5))) == [(0, 1), (2, 3, 4)]


def test_workers_of_a_unit_see_the_same_gpu():
    environ = {
        "PARSL_FLUX_BULK_SHARING": "2",
        "PARSL_FLUX_BULK_CORES": "2",
        "PARSL_FLUX_BULK_GPUS": "1",
        "CUDA_VISIBLE_DEVICES": "4,5",
    }

    found = bindings(environ, cores(*range(4)))

    assert [binding.environment["CUDA_VISIBLE_DEVICES"] for binding in found] == ["4", "4", "5", "5"]
    assert [binding.cpus for binding in found] == [(0,), (1,), (2,), (3,)]
