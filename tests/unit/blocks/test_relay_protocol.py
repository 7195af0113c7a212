"""Packets between a relay and its blocks."""

from __future__ import annotations

import os
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parsl_flux_bulk.blocks.relay import protocol
from parsl_flux_bulk.instances.base import Capacity, JobResult, JobStatus, Usage, WorkerCores

ENDS = st.integers(min_value=0, max_value=2**32 - 1)
NUMBERS = st.integers(min_value=0, max_value=2**64 - 1)
EDGES = [
    0,
    1,
    protocol.INLINE - 1,
    protocol.INLINE,
    protocol.INLINE + 1,
    protocol.PIECE,
    protocol.PIECE + 1,
    3 * protocol.PIECE,
]
RECORDS = st.tuples(st.integers(0, 255), ENDS, NUMBERS, st.sampled_from(EDGES))


@settings(deadline=None)  # Copying megabytes takes as long as the machine is busy.
@given(st.lists(RECORDS, max_size=8))
def test_what_is_packed_is_unpacked(shapes: list[tuple[int, int, int, int]]) -> None:
    stuff = os.urandom(64) * (max(EDGES) // 64 + 1)
    records = [(kind, end, what, stuff[n : n + length]) for n, (kind, end, what, length) in enumerate(shapes)]
    assert protocol.unpack([bytes(frame) for frame in protocol.pack(records)]) == records


def test_no_frame_is_long() -> None:
    frames = protocol.pack([(protocol.SEND, 1, 2, bytes(10 * protocol.PIECE))])
    assert max(len(frame) for frame in frames) <= protocol.PIECE


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_garbage_is_a_value_error_or_records(frames: list[bytes]) -> None:
    try:
        protocol.unpack(frames)
    except ValueError:
        pass


def test_a_body_that_is_cut_short_is_refused() -> None:
    long = [bytes(frame) for frame in protocol.pack([(protocol.SEND, 1, 2, bytes(3 * protocol.PIECE))])]
    with pytest.raises(ValueError, match="a body of"):
        protocol.unpack(long[:-1])
    short = protocol.pack([(protocol.SEND, 1, 2, b"abc")])
    with pytest.raises(ValueError, match="a body of"):
        protocol.unpack([bytes(short[0][:-1])])


@pytest.mark.parametrize(
    "result",
    [
        JobResult(JobStatus.COMPLETED, exit_code=0),
        JobResult(JobStatus.COMPLETED, exit_code=0, t_start=1.5, t_end=2.5),
        JobResult(JobStatus.FAILED, exit_code=1, t_start=1.5, t_end=2.5),
        JobResult(JobStatus.FAILED, exit_code=3, stderr="ü\n"),
        JobResult(JobStatus.CANCELED, signal=15, exception="cancel", note="why", started=False),
    ],
)
def test_results_travel(result: JobResult) -> None:
    decoded = protocol.decode_result(protocol.encode_result(result))
    assert asdict(decoded) == asdict(result)


def test_plain_success_is_nothing() -> None:
    assert protocol.encode_result(JobResult(JobStatus.COMPLETED, exit_code=0)) == b""


def test_a_report_of_what_is_free_is_the_same_after_the_journey() -> None:
    usage = Usage(
        Capacity(2, 8, 1),
        ((4, 0), (3, 1)),
        {1 << 60: "insufficient resources", 7: ""},
        1,
        executors={"a": WorkerCores(3, {7: 2}), "b": WorkerCores()},
    )
    assert protocol.decode_usage(protocol.encode_usage(usage)) == usage
