"""Parse the command line of `bulksubmit`."""

from __future__ import annotations

import argparse

from parsl_flux_bulk.jobspec.duration import parse_duration
from parsl_flux_bulk.jobspec.jobspec import DEFAULT_URGENCY
from parsl_flux_bulk.version import __version__

DESCRIPTION = """\
Run many jobs and wait for all of them.

A job is a jobspec file, as `flux submit --dry-run` prints it, or a copy of one command. Jobs are
submitted asynchronously and end in any order. Failed jobs are listed at the end."""

EPILOG = """\
examples:
  bulksubmit jobs/*.json                  each file is a job
  bulksubmit jobs/                        the same: every *.json of the directory
  find jobs -name '*.json' | bulksubmit - paths from stdin
  bulksubmit -n 1025 -- sleep 0           1025 copies of one command
  bulksubmit -n 8 --ntasks 4 -c 2 -- ./simulate

where the jobs run:
  --uri and --local name the place. Without them, the jobs run in the Flux instance that FLUX_URI
  names; if FLUX_URI is not set, in a new Flux instance; if Flux is not installed, on this machine's
  own cores.

exit status:
  0  every job ended with exit status 0
  1  a job failed, a file is not a valid jobspec, or a record or a line could not be written
  2  no job was run: invalid arguments, --strict, or no usable instance
  130, 143, 129  ended by Ctrl-C, SIGTERM, SIGHUP; outstanding jobs were canceled
  141  the reader of stdout ended, as head does; outstanding jobs were canceled"""

RESOURCE_KEYS = {
    "ntasks": "num_tasks",
    "cores_per_task": "cores_per_task",
    "gpus_per_task": "gpus_per_task",
    "nodes": "num_nodes",
    "exclusive": "exclusive",
    "duration": "duration",
    "queue": "queue",
    "bank": "bank",
    "requires": "constraint",
    "env": "environment",
    "cwd": "cwd",
}
"""The keys of a resource specification, by the options that set them."""

_COMMAND_ONLY = ("copies", "output", "error", *RESOURCE_KEYS)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments; exit with status 2 and a message if they are invalid.

    Returns
    -------
    argparse.Namespace
        Every option under its long name; also `inputs` and `command`, which may be empty.
    """
    parser = _parser()
    # Split here, because argparse would parse the command's own arguments as options.
    command: list[str] = []
    if "--" in arguments:
        where = arguments.index("--")
        arguments, command = arguments[:where], arguments[where + 1 :]
        if not command:
            parser.error("no command after --")
    options = parser.parse_intermixed_args(arguments)
    options.command = command
    if command and options.inputs:
        parser.error(f"give files or a command, not both: {options.inputs[0]!r} stands before --")
    if not command and not options.inputs:
        parser.error("nothing to run: give jobspec files, a directory, '-', or -n N -- COMMAND")
    for name in _COMMAND_ONLY:
        if not command and getattr(options, name):
            option = "-n" if name == "copies" else "--" + name.replace("_", "-")
            parser.error(f"{option} needs a command: bulksubmit {option} ... -- COMMAND")
    return options


def asks_for_little(options: argparse.Namespace) -> bool:
    """Whether a copy of the command fits into any instance; jobs of files are assumed to."""
    size = [options.ntasks, options.cores_per_task, options.nodes]
    more = (options.gpus_per_task, options.exclusive, options.queue, options.bank, options.requires)
    return all(number in (None, 1) for number in size) and not any(more)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bulksubmit",
        usage="bulksubmit [options] FILE|DIRECTORY|- ...\n       bulksubmit [options] [-n N] -- COMMAND ...",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="FILE|DIRECTORY|-",
        help="jobspec files; directories of them; paths from stdin",
    )
    parser.add_argument("--version", action="version", version=f"bulksubmit {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="print where the jobs run, and why")
    parser.add_argument("--strict", action="store_true", help="run no job if any file is not a valid jobspec")
    parser.add_argument("--json", metavar="FILE", help="write one line of JSON for each job, as it ends")
    parser.add_argument(
        "--max-active", type=_positive, metavar="N", help="have at most N jobs in the instance at one time"
    )
    parser.add_argument(
        "--instances",
        type=_positive,
        metavar="N",
        help="run small jobs in N Flux instances inside the instance, which start jobs N times as fast "
        "(default: depends on the number of jobs in a new Flux instance, 1 elsewhere)",
    )
    parser.add_argument(
        "--urgency",
        type=_urgency,
        default=DEFAULT_URGENCY,
        metavar="N",
        help="urgency of the jobs, 0 to 31 (default: 16)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--uri", type=_uri, help="run the jobs in the Flux instance at this URI (local://..., ssh://...)"
    )
    where.add_argument("--local", action="store_true", help="run the jobs on this machine, without Flux")
    command = parser.add_argument_group("for a command", "as in `flux submit`, except that -n counts jobs")
    command.add_argument(
        "-n",
        "--copies",
        type=_positive,
        metavar="N",
        help="run the command in N jobs (default: 1); in each, FLUX_JOB_CC is its number, 0 to N-1",
    )
    command.add_argument("--ntasks", type=_positive, metavar="N", help="tasks in each job (default: 1)")
    command.add_argument(
        "-c", "--cores-per-task", type=_positive, metavar="N", help="cores for each task (default: 1)"
    )
    command.add_argument(
        "-g", "--gpus-per-task", type=_positive, metavar="N", help="GPUs for each task (default: 0)"
    )
    command.add_argument("-N", "--nodes", type=_positive, metavar="N", help="nodes to spread the tasks over")
    command.add_argument("-x", "--exclusive", action="store_true", help="allocate whole nodes; needs --nodes")
    command.add_argument(
        "--duration", type=_duration, metavar="FSD", help="time limit: seconds, or 30s, 5m, 1.5h"
    )
    command.add_argument("-q", "--queue", metavar="NAME", help="queue to submit to")
    command.add_argument("-B", "--bank", metavar="NAME", help="bank to charge")
    command.add_argument("--requires", metavar="CONSTRAINT", help="constraint on the nodes")
    command.add_argument(
        "--env", action="append", metavar="RULE", help="change the environment: NAME=VALUE, -PATTERN, ..."
    )
    command.add_argument("--cwd", metavar="DIRECTORY", help="working directory (default: the current one)")
    command.add_argument("--output", metavar="FILE", help="file for stdout; {{id}} in it is the job's id")
    command.add_argument("--error", metavar="FILE", help="file for stderr (default: where stdout goes)")
    return parser


def _positive(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")


def _uri(text: str) -> str:
    if ":" in text:
        return text
    raise argparse.ArgumentTypeError(f"must be a URI, as flux-uri(1) prints it, not {text!r}")


def _urgency(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 31:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be from 0 (hold) to 31 (expedite), not {text!r}")


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None
