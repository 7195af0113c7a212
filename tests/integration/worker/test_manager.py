"""A pool and its workers, as the executor sees them at its end of the channel."""

from __future__ import annotations

import operator
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import calls
import helpers
import pytest
from executor_end import WORKER, ExecutorEnd, Frame, Peer, executor_end

from parsl_flux_bulk.protocol import frames, serialize

FUNCTION, SECOND_FUNCTION = 1, 2


@pytest.fixture
def end(tmp_path):
    with executor_end(tmp_path) as end:
        yield end


class Pool:
    """A started pool: tasks go in by number, frames come out."""

    def __init__(self, end: ExecutorEnd, slots: int = 1, environment: dict[str, str] | None = None, **setup):
        self.process = end.start("manager", PARSL_FLUX_BULK_SLOTS=str(slots), **environment or {})
        self.peer: Peer = end.accept()
        self.peer.send(frames.encode_json(frames.SETUP, 0, 0, {"sys_path": sys.path, **setup}))

    def learn(self, function, function_id=FUNCTION):
        self.peer.send(frames.encode(frames.FUNCTION, 0, function_id, serialize.dumps(function)))

    def give(self, *tasks, slot=0, function_id=FUNCTION):
        """Send one message of tasks, each (id, *arguments)."""
        self.peer.send(
            *(frames.encode_task(slot, id, function_id, serialize.dumps((args, {}))) for id, *args in tasks)
        )

    def say(self, kind, slot=0, id=0):
        self.peer.send(frames.encode(kind, slot, id))

    def run(self, function, *arguments, task_id=1):
        """Run one task and return its value, or raise what it raised."""
        self.learn(function)
        self.give((task_id, *arguments))
        self.peer.until(lambda: self.outcome_ids().count(task_id), what=f"the outcome of {task_id}")
        return self.value(task_id)

    def outcome_ids(self):
        return [frame.id for frame in self.peer.of(frames.OUTCOME)]

    def value(self, task_id):
        (outcome,) = [frame for frame in self.peer.of(frames.OUTCOME) if frame.id == task_id]
        value, error = serialize.read_outcome(outcome.payload)
        if error is not None:
            raise error
        return value

    def died(self, count=1) -> Frame:
        return self.peer.get(frames.DIED, count)[-1]

    def retire(self):
        self.say(frames.RETIRE)
        return self.process.communicate(timeout=10)


# -- one task after the other ----------------------------------------------------------------------------


def test_it_introduces_itself(end):
    process = end.start("manager", PARSL_FLUX_BULK_SLOTS="3", FLUX_TASK_RANK="2", FLUX_JOB_SIZE="4")
    (hello,) = end.accept().frames

    assert (hello.slot, hello.id) == (3, 4711)
    assert hello.json == {
        "rank": 2,
        "size": 4,
        "host": os.uname().nodename,
        "pid": process.pid,
        "node": os.environ.get("FLUX_URI"),
    }


def test_it_has_a_slot_for_every_core_that_it_may_use(end):
    process = end.start("manager")
    (hello,) = end.accept().frames

    assert 1 <= hello.slot <= len(os.sched_getaffinity(process.pid))


def test_a_call_and_its_result(end):
    assert Pool(end).run(operator.mul, 6, 7) == 42


def test_an_exception_is_an_outcome(end):
    with pytest.raises(ZeroDivisionError):
        Pool(end).run(operator.truediv, 1, 0)


def test_a_function_that_cannot_be_read_is_an_outcome(end):
    pool = Pool(end)
    pool.peer.send(frames.encode(frames.FUNCTION, 0, FUNCTION, b"Pgarbage"))
    pool.give((1,))
    pool.peer.get(frames.OUTCOME)

    with pytest.raises(Exception, match="function cannot be deserialized"):
        pool.value(1)


def test_many_tasks_keep_their_order(end):
    pool = Pool(end)
    pool.learn(operator.neg)
    pool.give(*((id, id) for id in range(1, 2001)))
    pool.peer.get(frames.OUTCOME, 2000)

    assert pool.outcome_ids() == list(range(1, 2001))
    assert pool.value(1234) == -1234


def test_a_function_is_sent_once_and_forgotten_when_told(end, tmp_path):
    class Loads:
        """Leaves a trace wherever it is deserialized."""

        def __init__(self, path):
            self.path = path

        def __reduce__(self):
            return (eval, (f"(open({self.path!r}, 'a').write('loaded '), __import__('operator').neg)[1]",))

    trace = tmp_path / "trace"
    pool = Pool(end)
    payload = serialize.PICKLE + pickle.dumps(Loads(str(trace)))
    pool.peer.send(frames.encode(frames.FUNCTION, 0, FUNCTION, payload))
    pool.give((1, 1), (2, 2), (3, 3))
    pool.peer.get(frames.OUTCOME, 3)
    assert trace.read_text() == "loaded "

    pool.say(frames.FORGET, id=FUNCTION)
    pool.peer.send(frames.encode(frames.FUNCTION, 0, FUNCTION, serialize.dumps(operator.pos)))
    pool.give((4, 4))
    pool.peer.get(frames.OUTCOME, 4)
    assert pool.value(3) == -3
    assert pool.value(4) == 4


@pytest.mark.parametrize("size", [60_000, 65_505, 65_507, 70_000, 5_000_000])
def test_long_calls_and_results(end, size):
    text = random.Random(size).randbytes(size)

    assert Pool(end).run(operator.add, text, b"!") == text + b"!"


def test_many_long_calls_at_once(end):
    pool = Pool(end, slots=2)
    pool.learn(operator.itemgetter(slice(0, 8)))
    texts = {id: random.Random(id).randbytes(1_000_000) for id in range(1, 41)}
    pool.give(*((id, texts[id]) for id in range(1, 21)))
    pool.give(*((id, texts[id]) for id in range(21, 41)), slot=1)
    pool.peer.get(frames.OUTCOME, 40)

    assert {id: pool.value(id) for id in texts} == {id: text[:8] for id, text in texts.items()}


def test_a_result_of_50_mb(end):
    assert Pool(end).run(operator.mul, b"x", 50_000_000) == b"x" * 50_000_000


def test_a_result_too_long_to_travel_fails_alone(end, tmp_path):
    starter = tmp_path / "starter.py"
    starter.write_text(
        "from parsl_flux_bulk.protocol import frames\nfrom parsl_flux_bulk.worker import manager\n"
        "frames.MAX_PAYLOAD = 1000\nmanager.main()\n"
    )
    pool = started_by(end, sys.executable, starter)
    pool.learn(operator.mul)
    pool.give((1, b"x", 2000), (2, b"x", 20))
    pool.peer.get(frames.OUTCOME, 2)

    with pytest.raises(OverflowError, match="a result of"):
        pool.value(1)
    assert pool.value(2) == b"x" * 20


def started_by(end: ExecutorEnd, *command: object, slots: int = 1, **setup: object) -> Pool:
    """A pool that a script starts instead of worker/main.py."""
    pool = Pool.__new__(Pool)
    pool.process = subprocess.Popen(
        [str(part) for part in command],
        env={
            **end.environment,
            "PYTHONPATH": str(helpers.PROJECT),
            "PARSL_FLUX_BULK_MODE": "manager",
            "PARSL_FLUX_BULK_SLOTS": str(slots),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    end.processes.append(pool.process)
    pool.peer = end.accept()
    pool.peer.send(frames.encode_json(frames.SETUP, 0, 0, {"sys_path": sys.path, **setup}))
    return pool


# -- what the user's code finds --------------------------------------------------------------------------


def test_nothing_of_ours_stands_before_the_users_modules(end, tmp_path):
    (tmp_path / "channel.py").write_text("def whose(): return 'mine'\n")
    (tmp_path / "manager.py").write_text("")

    whose, in_main, ours, first = Pool(end, sys_path=[str(tmp_path), *sys.path]).run(calls.what_is_ours)

    assert whose == "mine"
    assert not set(in_main) & {"main", "os", "sys", "import_own_package"}
    assert not ours
    assert first != str(WORKER.parent)


def test_standard_input_is_at_its_end(end):
    assert Pool(end).run(calls.read_stdin) == ""


def test_what_a_task_prints_is_there_with_its_outcome(end):
    pool = Pool(end)
    pool.run(print, "printed")

    assert os.read(pool.process.stdout.fileno(), 100) == b"printed\n"


def test_what_a_task_writes_to_stderr_is_passed_on(end):
    pool = Pool(end)
    pool.run(calls.write_stderr, 3, b"unbuffered\n")

    assert pool.retire() == (b"", b"unbuffered\n" * 3)


def test_dill_is_imported_once_for_all(end):
    pool = Pool(end)
    pool.peer.send(frames.encode(frames.FUNCTION, 0, SECOND_FUNCTION, serialize.DILL + b"whatever"))

    assert pool.run(calls.imported, "dill")


def test_many_workers_where_few_files_may_be_open(end):
    command = f"ulimit -Sn 256 && exec {sys.executable} {WORKER}"
    pool = started_by(end, "sh", "-c", command, slots=100)
    pool.learn(operator.neg)
    for slot in range(100):
        pool.give((slot + 1, slot), slot=slot)
    pool.peer.get(frames.OUTCOME, 100)

    assert len(helpers.descendants(pool.process.pid)) == 100


def test_each_worker_is_pinned_to_its_own_cores(end):
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU only")
    process = end.start("manager")
    peer = end.accept()
    slots = peer.frames[0].slot
    peer.send(frames.encode_json(frames.SETUP, 0, 0, {}))
    peer.send(frames.encode(frames.FUNCTION, 0, FUNCTION, serialize.dumps(os.sched_getaffinity)))
    peer.send(*(frames.encode_task(s, s + 1, FUNCTION, serialize.dumps(((0,), {}))) for s in range(slots)))
    masks = [serialize.read_outcome(frame.payload)[0] for frame in peer.get(frames.OUTCOME, slots)]

    assert sorted(cpu for mask in masks for cpu in mask) == cpus
    assert os.sched_getaffinity(process.pid) == set(cpus)


def test_the_number_of_the_worker_and_its_gpus(end):
    environment = {"PARSL_FLUX_BULK_GPUS": "1", "CUDA_VISIBLE_DEVICES": "3,7"}
    pool = Pool(end, slots=2, environment=environment)
    pool.learn(os.getenv)
    pool.give((1, "CUDA_VISIBLE_DEVICES"), (2, "PARSL_WORKER_RANK"), slot=1)
    pool.peer.get(frames.OUTCOME, 2)

    assert (pool.value(1), pool.value(2)) == ("7", "1")


def test_user_code_may_use_processes_and_threads(end):
    assert Pool(end).run(calls.parallel) == ([-1, -2, -3], [-1, -2, -3], b"hi\n")


def test_a_call_that_comes_back_twice_counts_once(end):
    pool = Pool(end)
    assert pool.run(calls.fork) is True
    pool.learn(operator.neg, SECOND_FUNCTION)
    pool.give((2, 1), function_id=SECOND_FUNCTION)
    pool.peer.get(frames.OUTCOME, 2)
    assert pool.outcome_ids() == [1, 2]


# -- deaths -----------------------------------------------------------------------------------------------


def test_exit_is_blamed_on_the_task_that_called_it(end):
    pool = Pool(end)
    pool.learn(os._exit)
    pool.learn(operator.neg, SECOND_FUNCTION)
    pool.peer.send(
        frames.encode_task(0, 1, SECOND_FUNCTION, serialize.dumps(((1,), {}))),
        frames.encode_task(0, 2, FUNCTION, serialize.dumps(((3,), {}))),
        frames.encode_task(0, 3, SECOND_FUNCTION, serialize.dumps(((3,), {}))),
        frames.encode_task(0, 4, SECOND_FUNCTION, serialize.dumps(((4,), {}))),
    )
    pool.peer.get(frames.RETURNED, 2)

    assert [(f.kind, f.id) for f in pool.peer.frames[1:]] == [
        (frames.OUTCOME, 1),
        (frames.DIED, 2),
        (frames.RETURNED, 3),
        (frames.RETURNED, 4),
    ]
    assert pool.died().json == {"exit_code": 3, "signal": None, "stderr": ""}


def test_a_segmentation_fault_says_where(end):
    pool = Pool(end)
    pool.learn(calls.crash)
    pool.give((1,))
    died = pool.died()

    assert (died.id, died.json["exit_code"], died.json["signal"]) == (1, None, signal.SIGSEGV)
    assert "Segmentation fault" in died.json["stderr"]
    assert "in crash" in died.json["stderr"]


def test_an_idle_worker_that_dies_had_run_nothing(end):
    pool = Pool(end)
    pool.learn(os.getpid)
    pool.give((1,))
    pool.peer.get(frames.OUTCOME)
    os.kill(pool.value(1), signal.SIGKILL)

    assert pool.died().id == 0
    assert pool.died().json["signal"] == signal.SIGKILL
    pool.give((2,))
    pool.peer.get(frames.OUTCOME, 2)
    assert not pool.peer.of(frames.RETURNED)


def test_forgetting_starts_no_worker(end):
    pool = Pool(end)
    pool.learn(os.getpid)
    pool.learn(operator.neg, SECOND_FUNCTION)
    pool.give((1,))
    pool.peer.get(frames.OUTCOME)
    os.kill(pool.value(1), signal.SIGSTOP)
    pool.say(frames.FORGET, id=FUNCTION)
    pool.say(frames.KILL)
    pool.died()
    assert not helpers.descendants(pool.process.pid)

    pool.give((2, 2), function_id=SECOND_FUNCTION)
    pool.peer.get(frames.OUTCOME, 2)


def test_a_task_of_an_unknown_function_ends_the_pool(end):
    pool = Pool(end)
    pool.give((1, 1))

    assert b"names a function that was never sent" in pool.process.communicate(timeout=10)[1]
    assert pool.process.returncode == 1


def test_the_next_task_finds_a_successor(end):
    pool = Pool(end)
    pool.learn(os._exit)
    pool.give((1, 1))
    pool.died()

    assert pool.run(operator.neg, 2, task_id=2) == -2


def test_the_last_lines_of_stderr(end):
    pool = Pool(end)
    pool.learn(calls.talk_and_die)
    pool.give((1, 1000))
    tail = pool.died().json["stderr"].splitlines()

    assert tail == [f"line {line}" for line in range(980, 1000)]
    assert pool.retire()[1].splitlines() == [f"line {line}".encode() for line in range(1000)]


def test_a_pool_whose_stderr_nobody_reads_goes_on(end):
    pool = Pool(end, slots=2)
    pool.learn(calls.write_stderr)
    pool.give((1, 3_000_000))
    pool.give((2, 0), slot=1)
    pool.peer.until(lambda: 2 in pool.outcome_ids())
    assert 1 not in pool.outcome_ids()

    passed_on = 0
    while passed_on < 3_000_000:
        passed_on += len(os.read(pool.process.stderr.fileno(), 1 << 20))
    pool.peer.get(frames.OUTCOME, 2)


def test_a_worker_that_closes_what_is_not_its_own(end):
    pool = Pool(end)
    pool.learn(os.closerange)
    pool.give((1, 2, 1000))

    assert pool.died().id == 1
    assert pool.run(operator.neg, 2, task_id=2) == -2


def test_workers_that_cannot_begin_end_the_pool(end, tmp_path):
    starter = tmp_path / "starter.py"
    starter.write_text(
        "import os, sys\nfrom parsl_flux_bulk.worker import main as worker\n"
        "def fail(pid, cpus): raise OSError('no such core')\n"
        "os.sched_setaffinity = fail\n"
        "sys.path.insert(0, '')\nsys.exit(worker.main())\n"
    )
    pool = started_by(end, sys.executable, starter)
    pool.learn(operator.neg)
    for count in (1, 2):
        pool.give((count, 1))
        pool.peer.get(frames.RETURNED, count)
    pool.give((3, 1))
    _, said = pool.process.communicate(timeout=10)

    assert pool.process.returncode == 1
    assert b"3 consecutive workers" in said
    assert b"no such core" in said
    assert not pool.outcome_ids()


@pytest.mark.parametrize("seed", range(2))
def test_every_task_has_one_end_while_workers_are_killed(end, tmp_path, seed):
    """2,000 tasks over 2 workers, one of which is killed every 50 ms."""
    count, chance = 2000, random.Random(seed)
    marks = tmp_path / "marks"
    marks.mkdir()
    pool = Pool(end, slots=2)
    pool.learn(calls.mark)
    todo, ends = list(range(1, count + 1)), {}
    queued = {0: 0, 1: 0}
    seen, next_kill, kills, ended_before = 1, time.monotonic() + 0.05, 0, 0
    deadline = time.monotonic() + 60
    while len(ends) < count:
        assert time.monotonic() < deadline, f"{len(ends)} of {count} ended"
        for slot in (0, 1):
            if todo and queued[slot] < 20:
                batch = [todo.pop() for _ in range(min(20, len(todo)))]
                queued[slot] += len(batch)
                pool.give(*((id, f"{marks}/{id}", chance.choice([0, 0.002])) for id in batch), slot=slot)
        pool.peer.read()
        for frame in pool.peer.frames[seen:]:
            if frame.kind == frames.RETURNED:
                todo.append(frame.id)
            if frame.kind in (frames.OUTCOME, frames.DIED) and frame.id:
                assert frame.id not in ends, f"task {frame.id} ended twice"
                ends[frame.id] = frame.kind
            if frame.kind in (frames.OUTCOME, frames.RETURNED) or frame.id:
                queued[frame.slot] -= 1
        seen = len(pool.peer.frames)
        # On a machine so busy that nothing came back since the last kill, let them come to something.
        if time.monotonic() > next_kill and len(ends) > ended_before:
            next_kill, ended_before = time.monotonic() + 0.05, len(ends)
            children = [pid for pid in helpers.descendants(pool.process.pid) if helpers.is_running(pid)]
            if children:
                kills += killed(chance.choice(children))
        time.sleep(0.0005)
    pool.retire()

    started = {int(file.name): file.read_text().count("started") for file in marks.iterdir()}
    blamed = {id for id, kind in ends.items() if kind == frames.DIED}
    assert kills > 10
    assert blamed
    assert {id for id, times in started.items() if times > 1} == set()
    # A task that was blamed was running; in the moments before and after its mark, without one.
    assert set(ends) - set(started) <= blamed
    assert len(blamed) <= kills


def killed(pid):
    """Kill a process; whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


# -- taking back, and ending on purpose -------------------------------------------------------------------


def test_recall_of_everything_not_started(end):
    pool = Pool(end)
    pool.learn(calls.sleep_and_return)
    pool.give((1, 0.0))
    pool.peer.get(frames.OUTCOME)
    pool.give(*((id, 0.3) for id in range(2, 2000)))
    pool.say(frames.RECALL)
    pool.peer.get(frames.RETURNED, 1996)
    pool.peer.until(lambda: len(pool.outcome_ids()) + len(pool.peer.of(frames.RETURNED)) == 1999)

    assert len(pool.outcome_ids()) <= 3
    assert sorted(pool.outcome_ids() + [f.id for f in pool.peer.of(frames.RETURNED)]) == list(range(1, 2000))
    assert pool.run(calls.sleep_and_return, 0.0, "still here", task_id=3000) == "still here"


def test_recall_of_one_leaves_the_others_in_order(end):
    pool = Pool(end)
    pool.learn(calls.sleep_and_return)
    pool.give((1, 0.3), *((id, 0.0) for id in range(2, 100)))
    pool.say(frames.RECALL, id=50)
    pool.peer.get(frames.OUTCOME, 98)

    assert [f.id for f in pool.peer.of(frames.RETURNED)] == [50]
    assert pool.outcome_ids() == [id for id in range(1, 100) if id != 50]


def test_recall_takes_a_function_and_long_calls_along(end):
    pool = Pool(end)
    pool.learn(calls.sleep_and_return)
    pool.learn(operator.itemgetter(0), SECOND_FUNCTION)
    pool.give((1, 0.3))
    long = {id: bytes([id]) * 100_000 for id in range(2, 8)}
    pool.give(*((id, text) for id, text in long.items()), function_id=SECOND_FUNCTION)
    pool.say(frames.RECALL, id=3)
    pool.peer.get(frames.OUTCOME, 6)

    assert [f.id for f in pool.peer.of(frames.RETURNED)] == [3]
    assert [pool.value(id) for id in (2, 4, 5, 6, 7)] == [2, 4, 5, 6, 7]


def test_what_has_started_or_ended_cannot_be_recalled(end, tmp_path):
    pool = Pool(end)
    pool.learn(calls.mark)
    pool.give((1, str(tmp_path / "first")))
    pool.peer.get(frames.OUTCOME)
    pool.give((2, str(tmp_path / "second"), 0.3))
    helpers.wait_until((tmp_path / "second").exists)
    pool.say(frames.RECALL, id=1)
    pool.say(frames.RECALL, id=2)
    pool.peer.get(frames.OUTCOME, 2)

    assert not pool.peer.of(frames.RETURNED)


def test_recall_races_with_starting(end):
    pool = Pool(end, slots=2)
    pool.learn(operator.neg)
    ids = range(1, 4001)
    for first in range(1, 4001, 40):
        for slot in (0, 1):
            pool.give(*((id, 1) for id in range(first + 20 * slot, first + 20 * slot + 20)), slot=slot)
        pool.say(frames.RECALL, slot=0)
        pool.say(frames.RECALL, slot=1, id=first + 30)
    pool.peer.until(lambda: len(pool.peer.of(frames.OUTCOME, frames.RETURNED)) >= 4000)

    assert sorted(f.id for f in pool.peer.of(frames.OUTCOME, frames.RETURNED)) == list(ids)


def test_kill_ends_the_task_and_what_it_started(end, tmp_path):
    note = tmp_path / "pid"
    pool = Pool(end)
    pool.learn(calls.start_another)
    pool.give((1, str(note)), (2, str(note)))
    helpers.wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
    pool.say(frames.KILL, id=1)
    pool.peer.get(frames.RETURNED)

    assert [(f.kind, f.id) for f in pool.peer.frames[1:]] == [(frames.DIED, 1), (frames.RETURNED, 2)]
    assert pool.died().json["signal"] == signal.SIGKILL
    helpers.wait_gone([int(note.read_text())], 5)


def test_kill_of_a_task_that_has_ended_harms_no_other(end):
    pool = Pool(end)
    pool.learn(calls.sleep_and_return)
    pool.give((1, 0.0), (2, 0.2), (3, 0.0))
    pool.peer.get(frames.OUTCOME)
    pool.say(frames.KILL, id=1)
    pool.peer.get(frames.OUTCOME, 3)

    assert pool.outcome_ids() == [1, 2, 3]
    assert not pool.peer.of(frames.DIED)


def test_kill_of_a_task_that_has_not_started_gives_it_back(end):
    pool = Pool(end)
    pool.learn(calls.sleep_and_return)
    pool.give((1, 0.3), (2, 0.0), (3, 0.0))
    pool.say(frames.KILL, id=2)
    pool.peer.get(frames.OUTCOME, 2)

    assert pool.outcome_ids() == [1, 3]
    assert [f.id for f in pool.peer.of(frames.RETURNED)] == [2]


def test_kill_races_with_ending(end):
    """Whatever is killed was the one that was meant."""
    pool = Pool(end)
    pool.learn(operator.neg)
    chance = random.Random(1)
    for id in range(1, 601, 3):
        pool.give((id, 1), (id + 1, 1), (id + 2, 1))
        time.sleep(chance.random() * 0.0003)
        pool.say(frames.KILL, id=id + 1)
        pool.peer.until(lambda count=id + 2: len(ends_of(pool)) == count)

    assert sorted(frame.id for frame in ends_of(pool)) == list(range(1, 601))
    assert all(frame.id % 3 == 2 for frame in ends_of(pool) if frame.kind == frames.DIED)


def ends_of(pool):
    """The frames that say how a task ended."""
    return [f for f in pool.peer.of(frames.OUTCOME, frames.RETURNED, frames.DIED) if f.id]


def test_workers_are_replaced_after_their_number_of_tasks(end):
    pool = Pool(end, tasks_per_worker=3)
    pool.learn(os.getpid)
    pool.give(*((id,) for id in range(1, 11)))
    pool.peer.get(frames.OUTCOME, 10)
    pids = [pool.value(id) for id in range(1, 11)]

    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3, 1]
    assert not pool.peer.of(frames.RETURNED, frames.DIED)


def test_a_worker_that_does_not_end_after_its_last_task_is_ended(end, tmp_path):
    starter = tmp_path / "starter.py"
    starter.write_text(
        "from parsl_flux_bulk.worker import manager\nmanager.LIMIT_TIMEOUT = 0.2\nmanager.main()\n"
    )
    pool = started_by(end, sys.executable, starter, tasks_per_worker=1)
    pool.learn(calls.sleep_at_exit)
    pool.give((1,), (2,))
    pool.peer.get(frames.OUTCOME, 2, bound=15)

    assert pool.value(1) != pool.value(2)
    helpers.wait_until(lambda: not helpers.descendants(pool.process.pid))
    assert not pool.peer.of(frames.RETURNED, frames.DIED)


def test_a_worker_cleans_up_after_itself(end, tmp_path):
    pool = Pool(end)
    pool.run(calls.touch_at_exit, str(tmp_path / "cleaned"))
    pool.retire()

    assert (tmp_path / "cleaned").exists()


# -- the end of the pool ----------------------------------------------------------------------------------


def test_retire_is_quick_and_leaves_nothing(end):
    pool = Pool(end, slots=4)
    pool.learn(calls.sleep_and_return)
    for slot in range(3):
        pool.give((slot + 1, 0.0), slot=slot)
    pool.peer.get(frames.OUTCOME, 3)
    pool.give((4, 60.0), slot=3)
    children = helpers.wait_until(lambda: len(c := helpers.descendants(pool.process.pid)) == 4 and c)
    start = time.monotonic()
    pool.retire()

    assert time.monotonic() - start < 1
    assert pool.process.returncode == 0
    helpers.wait_gone(children, 1)


def busy_with_grandchild(end, tmp_path):
    note = tmp_path / "pid"
    pool = Pool(end)
    pool.learn(calls.start_another)
    pool.give((1, str(note)))
    helpers.wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
    return pool, [*helpers.descendants(pool.process.pid), int(note.read_text())]


def test_nothing_is_left_when_the_executor_goes(end, tmp_path):
    pool, processes = busy_with_grandchild(end, tmp_path)
    pool.peer.connection.close()

    assert b"executor" in pool.process.communicate(timeout=10)[1]
    assert pool.process.returncode == 1
    helpers.wait_gone(processes, 5)


def test_nothing_is_left_when_the_pool_is_told_to_end(end, tmp_path):
    pool, processes = busy_with_grandchild(end, tmp_path)
    pool.process.terminate()
    pool.process.communicate(timeout=10)

    assert pool.process.returncode == -signal.SIGTERM
    helpers.wait_gone(processes, 5)


def test_workers_end_with_a_pool_that_is_killed(end):
    pool = Pool(end, slots=2)
    pool.learn(calls.sleep_and_return)
    pool.give((1, 60.0))
    pool.give((2, 0.0), slot=1)
    pool.peer.get(frames.OUTCOME)
    children = helpers.descendants(pool.process.pid)
    assert len(children) == 2
    pool.process.kill()

    helpers.wait_gone(children, 5)


def test_an_idle_pool_does_nothing(end):
    pool = Pool(end, slots=2)
    pool.learn(operator.neg)
    pool.give((1, 1))
    pool.give((2, 1), slot=1)
    pool.peer.get(frames.OUTCOME, 2)
    processes = [pool.process.pid, *helpers.descendants(pool.process.pid)]

    def switches():
        status = [Path(f"/proc/{pid}/status").read_text() for pid in processes]
        return [text.partition("\nvoluntary_ctxt_switches:")[2].split()[0] for text in status]

    for pid in processes:
        helpers.wait_until(lambda p=pid: Path(f"/proc/{p}/stat").read_text().split()[2] == "S")
    time.sleep(0.2)
    before = switches()
    time.sleep(1.0)

    assert switches() == before


def test_a_mode_that_there_is_not(end):
    process = end.start("neither")

    assert b"expected 'manager', 'task' or 'inner_instance'" in process.communicate(timeout=10)[1]
    assert process.returncode == 2


def test_no_executor_at_the_address(end):
    end.listener.close()
    process = end.start("manager")

    assert b"cannot connect to the executor's socket" in process.communicate(timeout=10)[1]
    assert process.returncode == 1
