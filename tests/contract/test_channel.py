"""The channel to processes inside jobs."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from seam import Seam, peer_job

MEGABYTES = 50
ECHO = """
while (message := hear()) != b"bye":
    say(message)
"""


def start_peer(seam: Seam, source: str, directory: Path, **keywords: object) -> int:
    (job_id,) = seam.submit(peer_job(source, directory, seam.completion, **keywords))
    return job_id


def wait_message(seam: Seam, count: int = 1) -> list[bytes]:
    """Wait until `count` messages are there, and return them all."""
    seam.pump(lambda: len(seam.messages) >= count or bool(seam.results), what=f"{count} messages")
    assert len(seam.messages) >= count, (seam.messages, seam.results)
    return [body for _, body in seam.messages]


def test_a_message_each_way(seam: Seam, tmp_path: Path) -> None:
    job_id = start_peer(seam, 'say(b"hello"); say(hear()[::-1])', tmp_path)
    assert wait_message(seam) == [b"hello"]
    peer = seam.messages[0][0]
    seam.completion.send(peer, b"abc")
    seam.pump(lambda: len(seam.messages) == 2)
    assert seam.messages[1] == (peer, b"cba")
    seam.pump(lambda: seam.lost == [peer], what="the peer's end")
    assert seam.wait([job_id])[0].ok


def test_messages_keep_their_order_and_edges(seam: Seam, tmp_path: Path) -> None:
    bodies = [bytes([n % 256]) * (n % 7 * 1000 + n % 3) for n in range(500)]
    start_peer(seam, 'say(b"ready")' + ECHO, tmp_path)
    wait_message(seam)
    peer = seam.messages.pop()[0]
    for body in bodies:
        seam.completion.send(peer, body)
    assert wait_message(seam, 500) == bodies
    seam.completion.send(peer, b"bye")
    seam.pump(lambda: seam.lost == [peer])


def test_an_empty_message(seam: Seam, tmp_path: Path) -> None:
    start_peer(seam, 'say(b"first"); say(b""); say(hear() or b"was empty")', tmp_path)
    wait_message(seam, 2)
    peer = seam.messages[0][0]
    seam.completion.send(peer, b"")
    assert wait_message(seam, 3) == [b"first", b"", b"was empty"]


def test_a_large_message_both_ways(seam: Seam, tmp_path: Path) -> None:
    body = os.urandom(1 << 20) * MEGABYTES
    start_peer(seam, 'say(b"ready"); say(hear())', tmp_path)
    wait_message(seam)
    peer = seam.messages.pop()[0]
    seam.completion.send(peer, body)
    (echoed,) = wait_message(seam)
    assert hashlib.sha256(echoed).digest() == hashlib.sha256(body).digest()


def test_sending_never_waits_for_a_slow_peer(seam: Seam, tmp_path: Path) -> None:
    slow, quick = tmp_path / "slow", tmp_path / "quick"
    slow.mkdir()
    quick.mkdir()
    start_peer(
        seam,
        f"""
say(b"slow")
while not os.path.exists({str(tmp_path / "go")!r}):
    time.sleep(0.01)
say(str(sum(len(hear()) for _ in range(20))).encode())
""",
        slow,
    )
    wait_message(seam)
    slow_peer = seam.messages.pop()[0]
    for _ in range(20):
        seam.completion.send(slow_peer, bytes(1 << 20))  # returns, though nobody reads
    if seam.connection.capacity().cores > 1:
        start_peer(seam, 'say(b"quick"); say(hear())', quick)
        wait_message(seam)
        quick_peer = seam.messages.pop()[0]
        seam.completion.send(quick_peer, b"served meanwhile")
        assert wait_message(seam) == [b"served meanwhile"]
        seam.messages.clear()
    (tmp_path / "go").touch()
    seam.pump(lambda: bool(seam.messages), what="the slow peer's answer")
    assert seam.messages == [(slow_peer, str(20 << 20).encode())]


def test_all_messages_come_before_the_loss(seam: Seam, tmp_path: Path) -> None:
    # Seam.take fails on a message that comes after its peer's loss.
    start_peer(seam, "for n in range(2000): say(b'%d' % n)", tmp_path)
    seam.pump(lambda: bool(seam.lost), what="the peer's end")
    assert [body for _, body in seam.messages] == [b"%d" % n for n in range(2000)]


def test_a_peer_that_never_said_anything_is_not_lost(seam: Seam, tmp_path: Path) -> None:
    job_id = start_peer(seam, "", tmp_path)
    assert seam.wait([job_id])[0].ok
    assert seam.completion.poll(0.2) == []
    assert not seam.messages
    assert not seam.lost


def test_a_killed_peer_is_lost_once(seam: Seam, tmp_path: Path) -> None:
    job_id = start_peer(seam, 'say(b"%d" % os.getpid()); hear()', tmp_path)
    pid = int(wait_message(seam)[0])
    peer = seam.messages[0][0]
    os.kill(pid, 9)
    seam.pump(lambda: bool(seam.lost), what="the loss")
    assert seam.lost == [peer]
    assert seam.wait([job_id])[0].signal == 9
    seam.completion.send(peer, b"to nobody")  # passed over
    assert seam.completion.poll(0.1) == []


def test_what_is_sent_after_the_end_is_passed_over(seam: Seam, tmp_path: Path) -> None:
    start_peer(seam, 'say(b"here"); hear()', tmp_path)
    wait_message(seam)
    seam.completion.close()
    seam.completion.send(seam.messages[0][0], b"too late")


def test_several_peers_are_told_apart(seam: Seam, tmp_path: Path) -> None:
    source = 'rank = os.environ["FLUX_TASK_RANK"].encode(); say(rank); say(rank + hear())'
    start_peer(seam, source, tmp_path, per_resource={"type": "core", "count": 4})
    wait_message(seam, 4)
    peers = {rank: peer for peer, rank in seam.messages}
    assert sorted(peers) == [b"0", b"1", b"2", b"3"]
    assert len(set(peers.values())) == 4
    for rank, peer in peers.items():
        seam.completion.send(peer, b":" + rank)
    seam.pump(lambda: len(seam.lost) == 4, what="the ends of four peers")
    assert {body: peer for peer, body in seam.messages[4:]} == {
        rank + b":" + rank: peer for rank, peer in peers.items()
    }


def test_closing_the_completion_ends_peers(seam: Seam, tmp_path: Path) -> None:
    source = f"""
say(b"here")
try:
    hear()
except ChannelLost:
    open({str(tmp_path / "told")!r}, "w").write("lost")
"""
    start_peer(seam, source, tmp_path)
    wait_message(seam)
    second = seam.instance.completion()
    seam.completion.close()
    seam.completion = second
    assert seam.wait_file(tmp_path / "told") == "lost"


def test_the_address_stays_the_same(seam: Seam) -> None:
    assert seam.completion.channel() == seam.completion.channel()
    assert "PARSL_FLUX_BULK_CHANNEL" in seam.completion.channel().environment


def test_a_worker_that_has_not_used_a_lane_cannot_be_sent_to(seam: Seam, tmp_path: Path) -> None:
    start_peer(seam, 'say(b"here"); say(hear())', tmp_path)
    wait_message(seam)
    peer = seam.messages[0][0]
    assert seam.completion.send_from_any_thread(peer, b"packet", 0) is False
    seam.completion.send(peer, b"the peer can")
    assert wait_message(seam, 2)[1] == b"the peer can"


def test_another_thread_sends_to_a_peer_on_this_node(seam: Seam, kind: str, tmp_path: Path) -> None:
    start_peer(seam, 'say(b"here"); say(hear())', tmp_path)
    wait_message(seam)
    peer = seam.messages[0][0]
    sent = []
    thread = threading.Thread(
        target=lambda: sent.append(seam.completion.send_from_any_thread(peer, b"from a thread"))
    )
    thread.start()
    thread.join()
    assert sent == [kind in ("local", "flux-attached", "flux-own")]
    if not sent[0]:
        seam.completion.send(peer, b"from this thread")
    assert wait_message(seam, 2)[1] == (b"from a thread" if sent[0] else b"from this thread")
