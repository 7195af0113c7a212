"""Frames: what goes in comes out, and what is cut short is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_flux_bulk.protocol import frames

kinds = st.sampled_from(
    [frames.HELLO, frames.OUTCOME, frames.DIED, frames.FUNCTION, frames.TASK, frames.RETIRE]
)
frame = st.tuples(kinds, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=100))


@given(st.lists(frame))
def test_frames_come_back_as_they_were(written):
    message = b"".join(frames.encode(*parts) for parts in written)

    assert [(k, s, i, bytes(p)) for k, s, i, p in frames.decode(message)] == written


@given(st.lists(frame))
def test_split_yields_the_whole_frames(written):
    message = b"".join(frames.encode(*parts) for parts in written)

    pieces = list(frames.split(message))

    assert [(k, s, i) for k, s, i, _ in pieces] == [(k, s, i) for k, s, i, _ in written]
    assert b"".join(piece for *_, piece in pieces) == message


@given(st.lists(frame, min_size=1), st.data())
def test_a_message_that_is_cut_short_is_an_error(written, data):
    encoded = [frames.encode(*parts) for parts in written]
    message = b"".join(encoded)
    whole = {sum(map(len, encoded[:count])) for count in range(len(encoded) + 1)}
    cut = data.draw(st.integers(0, len(message)).filter(lambda size: size not in whole))

    with pytest.raises(frames.FrameError):
        list(frames.decode(message[:cut]))


def test_a_task_names_its_function_before_its_call():
    ((kind, slot, task_id, payload),) = frames.decode(frames.encode_task(3, 5, 7, b"call"))

    assert (kind, slot, task_id) == (frames.TASK, 3, 5)
    assert frames.FUNCTION_ID.unpack_from(payload) == (7,)
    assert bytes(payload[frames.FUNCTION_ID_SIZE :]) == b"call"


def test_json_payloads():
    about = {"exit_code": None, "signal": 9, "stderr": "„quoted“\n"}
    ((_, _, _, payload),) = frames.decode(frames.encode_json(frames.DIED, 1, 2, about))

    assert frames.decode_json(payload) == about


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[1]", b"null"])
def test_a_payload_that_is_no_json_object_is_an_error(payload):
    with pytest.raises(frames.FrameError):
        frames.decode_json(payload)


def test_a_payload_that_cannot_travel_is_refused(monkeypatch):
    monkeypatch.setattr(frames, "MAX_PAYLOAD", 10)

    assert frames.encode(frames.OUTCOME, payload=b"x" * 10)
    with pytest.raises(frames.FrameError, match="11 bytes"):
        frames.encode(frames.OUTCOME, payload=b"x" * 11)
    with pytest.raises(frames.FrameError, match="at most 10"):
        frames.encode_task(0, 1, 1, b"xxx")


def test_the_largest_payload_fits_a_c_int_with_its_headers():
    assert frames.MAX_PAYLOAD + 2 * frames.HEADER_SIZE < 2**31
