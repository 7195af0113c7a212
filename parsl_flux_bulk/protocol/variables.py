"""Names of the environment variables that the executor sets for the processes of its jobs, and of `CLAIMS`.

Managers and ranks remove every variable with `PREFIX` before user code runs.
"""

from __future__ import annotations

PREFIX = "PARSL_FLUX_BULK_"

MODE = PREFIX + "MODE"  # what worker/main.py runs: manager or task
TOKEN = PREFIX + "TOKEN"  # decimal number of the job, which HELLO repeats
CHANNEL = PREFIX + "CHANNEL"  # address of the executor: unix:PATH or flux:RANK:SERVICE
SOCKET = PREFIX + "SOCKET"  # abstract Unix socket of the executor, which processes on its node use instead
LIBFLUX = PREFIX + "LIBFLUX"  # path of the executor's libflux-core, which the process tries first
PING = PREFIX + "PING"  # seconds of silence after which the process asks whether the executor is alive
PING_TIMEOUT = PREFIX + "PING_TIMEOUT"  # seconds to wait for the answer
CORES = PREFIX + "CORES"  # physical cores of one unit of workers, or of a node job
GPUS = PREFIX + "GPUS"  # GPUs of one unit of workers, or of a node job
SHARING = PREFIX + "SHARING"  # workers of one unit, which share its cores and GPUs; 1 by default
SLOTS = PREFIX + "SLOTS"  # number of workers of a manager; by default as many as fit its CPUs and GPUs
NODE_CORES = PREFIX + "NODE_CORES"  # cores that the job got on this node, by the instance
UNPINNED = PREFIX + "UNPINNED"  # set if workers must not be pinned: others may be pinned to the same cores
OUTPUT = PREFIX + "OUTPUT"  # path without suffix of the files that a manager writes its output to
OUTER_URI = PREFIX + "OUTER_URI"  # URI of the instance that runs a task with an instance of its own

CLAIMS = PREFIX + "CLAIMS"  # set by the user: directory of the file in which embedded instances claim cores
