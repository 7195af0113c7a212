"""The options of `bulksubmit`, as an argument parser; also for its manual page and completion."""

from __future__ import annotations

import argparse

from parsl_flux_bulk.bulk.templates import KNOWN
from parsl_flux_bulk.cli.bulksubmit.failures import RETRY_ON
from parsl_flux_bulk.jobspec.duration import parse_duration
from parsl_flux_bulk.version import __version__

DESCRIPTION = """\
Run many jobs and wait for all of them.

A job is a command, for each input or copy; or a jobspec file, as `flux submit --dry-run` prints
it. Jobs are submitted asynchronously and end in any order. Failed jobs are listed at the end."""

USAGE = """\
bulksubmit [options] -- COMMAND ... [::: INPUT ...] [:::: FILE] ...
       bulksubmit [options] FILE|DIRECTORY|- ..."""

EPILOG = f"""\
examples:
  bulksubmit -n 4 -c 2 -- ./sim {{}} ::: a b c   a job of 4 tasks for each of a, b and c
  ls *.dat | bulksubmit -- ./fit {{}}            a job for each line of stdin
  bulksubmit --copies 1025 -- sleep 0          1025 copies of one command
  bulksubmit --commands FILE                   each line is a command
  bulksubmit jobs/*.json                       each file is a job
  bulksubmit jobs/                             the same: every *.json of the directory
  find jobs -name '*.json' | bulksubmit -      paths from stdin

templates, in COMMAND and in the options of a command:
  {KNOWN}, as in flux-bulksubmit(1)

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


_AS_JOBSPEC = "run the files that `flux submit --dry-run` writes with it"

REFUSED = {
    "--add-file": f"put the file where jobs can read it, or {_AS_JOBSPEC}",
    "--resources-shape": _AS_JOBSPEC,
    "--resources-json": _AS_JOBSPEC,
    "--wait-event": "bulksubmit waits until all jobs have ended",
    "--log": "redirect standard output; --json records the jobs",
    "--log-stderr": "redirect standard error",
    "--list-plugins": "`flux submit --list-plugins` has it",
    "--instances": "it was removed, because --packed is faster",
}
"""Options of flux-bulksubmit(1) and of earlier versions that this command lacks, and what to do instead."""


def option_parser(*, posix: bool = False) -> argparse.ArgumentParser:
    """Return the parser.

    Parameters
    ----------
    posix : bool
        Whether options end at the first word that is none, where the command begins. Otherwise options and
        the names of files may be mixed.
    """
    parser = argparse.ArgumentParser(
        prog="bulksubmit",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs",
        nargs=argparse.REMAINDER if posix else "*",
        metavar="FILE|DIRECTORY|-",
        help="jobspec files, or quoted patterns; directories of them; paths from stdin",
    )
    parser.add_argument("--version", action="version", version=f"bulksubmit {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="print where the jobs run, and why")
    _add_sources(parser)
    _add_run(parser)
    _add_place(parser)
    _add_resources(parser)
    _add_other(parser)
    for option in ("--wait", "--progress", "--jps", "--quiet"):  # always so
        parser.add_argument(option, action="store_true", help=argparse.SUPPRESS)
    for option in REFUSED:
        parser.add_argument(option, action=_Refuse, nargs="?", help=argparse.SUPPRESS)
    return parser


class _Refuse(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"{option_string} is not supported here: {REFUSED[option_string or '']}")


def _add_sources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which jobs")
    group.add_argument(
        "--copies", type=_positive, metavar="N", help="run every job N times; FLUX_JOB_CC is 0 to N-1"
    )
    group.add_argument("--cc", metavar="IDSET", help="a copy for each number, such as 0-3,7, in FLUX_JOB_CC")
    group.add_argument("--bcc", metavar="IDSET", help="as --cc, without FLUX_JOB_CC")
    group.add_argument("--commands", metavar="FILE", help="run each line of FILE ('-': stdin) with /bin/sh")
    group.add_argument(
        "--jobs",
        metavar="FILE",
        help="read jobs from FILE ('-': stdin): each line is a jobspec, or a JSON object",
    )
    group.add_argument(
        "--sep", metavar="STRING", default="\\n", help="separator of inputs in files (none: white space)"
    )
    group.add_argument(
        "--define",
        action="append",
        default=[],
        metavar="NAME=CODE",
        help="let {.NAME} be a Python expression of x",
    )
    group.add_argument("--shuffle", action="store_true", help="submit the jobs in random order")
    group.add_argument("--literal", action="store_true", help="take braces as they are: no templates")
    group.add_argument("--strict", action="store_true", help="run no job if any file is not a valid jobspec")
    group.add_argument(
        "--dry-run",
        metavar="DIR",
        help="run nothing: print the commands; with --dry-run=DIR, write the jobspecs to files there",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the run")
    group.add_argument("--json", metavar="FILE", help="write one line of JSON for each job, as it ends")
    group.add_argument(
        "--trace", metavar="FILE", help="write what happens when to FILE, for flux-bulk report and top"
    )
    group.add_argument(
        "--report",
        metavar="FILE",
        help="write a page about the run to FILE, and the trace beside it; needs Bokeh",
    )
    group.add_argument(
        "--output-dir",
        metavar="DIR",
        help="send the output of each job to a file there, and the records to DIR/records.jsonl",
    )
    group.add_argument(
        "--watch", action="store_true", help="print what the jobs print, in whole lines, as it comes"
    )
    again = group.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", metavar="RECORDS", help="go on with a run whose records are there: skip completed jobs"
    )
    again.add_argument("--rerun", metavar="RECORDS", help="run only the jobs that failed in that run")
    group.add_argument(
        "--max-fails", type=_positive, metavar="N", help="cancel the rest when N jobs have failed"
    )
    group.add_argument("--retries", type=_positive, metavar="N", help="run a failed job up to N times again")
    group.add_argument(
        "--retry-on",
        type=_retry_on,
        metavar="WHAT,...",
        help="what is retried: exit (exit status, signal), lost (node), timeout, or exit statuses such as 75 "
        "(default: exit,lost)",
    )
    group.add_argument(
        "--max-active", type=_positive, metavar="N", help="have at most N jobs in the instance at one time"
    )
    group.add_argument(
        "--packed",
        action=argparse.BooleanOptionalAction,
        help="run jobs of one task inside one Flux job on each node, many times as fast as one Flux job each "
        "(default: from 100 jobs on, in a Flux instance that starts for this run)",
    )


def _add_place(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--uri", type=_uri, help="run the jobs in the Flux instance at this URI (local://..., ssh://...)"
    )
    where.add_argument("--local", action="store_true", help="run the jobs on this machine, without Flux")


def _add_resources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("resources of each job", "as in `flux submit`; templates are filled in")
    group.add_argument("-n", "--ntasks", metavar="N", help="tasks in each job (default: 1)")
    group.add_argument("-c", "--cores-per-task", metavar="N", help="cores for each task (default: 1)")
    group.add_argument("-g", "--gpus-per-task", metavar="N", help="GPUs for each task (default: 0)")
    group.add_argument("--cores", metavar="N", help="cores in all, instead of tasks")
    group.add_argument("--tasks-per-node", metavar="N", help="tasks on each node; with --nodes or --cores")
    group.add_argument("--tasks-per-core", metavar="N", help="tasks on each core; with --nodes or --cores")
    group.add_argument("--gpus-per-node", metavar="N", help="GPUs on each node; with --nodes")
    group.add_argument("-N", "--nodes", metavar="N", help="nodes to spread the tasks over")
    group.add_argument("-x", "--exclusive", action="store_true", help="allocate whole nodes; needs --nodes")
    limit = group.add_mutually_exclusive_group()
    limit.add_argument("-t", "--time-limit", metavar="FSD", help="time limit: minutes, or 30s, 5m, 1.5h")
    limit.add_argument(
        "--duration",
        "--timeout",
        type=_duration,
        metavar="FSD",
        help="time limit: seconds, or 30s, 5m, 1.5h",
    )
    group.add_argument("-q", "--queue", metavar="NAME", help="queue to submit to")
    group.add_argument("-B", "--bank", metavar="NAME", help="bank to charge")
    group.add_argument("--requires", action="append", metavar="CONSTRAINT", help="constraint on the nodes")
    group.add_argument(
        "--dependency", action="append", metavar="URI", help="wait for this, such as afterok:JOB"
    )
    group.add_argument("--begin-time", metavar="+FSD", help="start no earlier than this time from now")
    group.add_argument(
        "--urgency", type=_urgency, metavar="N", help="0 (hold) to 31 (expedite); also of files (default: 16)"
    )


def _add_other(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how each job runs", "as in `flux submit`; templates are filled in")
    group.add_argument("--job-name", metavar="NAME", help="name of the job (default: that of the command)")
    group.add_argument("--cwd", metavar="DIRECTORY", help="working directory (default: the current one)")
    group.add_argument(
        "--env", action="append", metavar="RULE", help="change the environment: NAME=VALUE, -PATTERN, ..."
    )
    group.add_argument("--env-remove", dest="env", type="-{}".format, action="append", metavar="PATTERN")
    group.add_argument("--env-file", dest="env", type="^{}".format, action="append", metavar="FILE")
    group.add_argument(
        "--rlimit", action="append", metavar="RULE", help="resource limits: NAME, NAME=VALUE, -PATTERN"
    )
    group.add_argument("--input", metavar="FILE", help="file for stdin (default: empty)")
    group.add_argument("--output", metavar="FILE", help="file for stdout; {{id}} in it is the job's id")
    group.add_argument("--error", metavar="FILE", help="file for stderr (default: where stdout goes)")
    group.add_argument(
        "--open-mode", choices=("truncate", "append"), help="overwrite files of output, or append to them"
    )
    group.add_argument(
        "-l", "--label-io", action="store_true", help="label lines in files with the task's rank"
    )
    group.add_argument("-u", "--unbuffered", action="store_true", help="do not buffer input and output")
    group.add_argument("-o", "--setopt", action="append", metavar="NAME[=VALUE]", help="shell option")
    group.add_argument(
        "-S", "--setattr", action="append", metavar="NAME[=VALUE]", help="attribute of the jobspec"
    )
    group.add_argument("--taskmap", metavar="SCHEME[:VALUE]", help="how tasks are mapped to nodes")
    group.add_argument("--signal", metavar="[SIGNAL][@FSD]", help="send a signal before the time limit")
    group.add_argument(
        "--flags", action="append", metavar="FLAGS", help="waitable; accepted, because every job is"
    )


def _positive(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")


def _retry_on(text: str) -> frozenset[str]:
    words = text.split(",")
    for word in words:
        if word not in RETRY_ON and not (word.isascii() and word.isdigit() and 0 < int(word) < 256):
            raise argparse.ArgumentTypeError(
                f"must be some of {', '.join(RETRY_ON)} and exit statuses from 1 to 255, not {word!r}"
            )
    return frozenset(words)


def _uri(text: str) -> str:
    if ":" in text:
        return text
    raise argparse.ArgumentTypeError(f"must be a URI, as flux-uri(1) prints it, not {text!r}")


def _urgency(text: str) -> str:
    if (
        text in ("hold", "default", "expedite")
        or "{" in text
        or (text.isascii() and text.isdigit() and int(text) <= 31)
    ):
        return text
    raise argparse.ArgumentTypeError(f"must be from 0 (hold) to 31 (expedite), not {text!r}")


def _duration(text: str) -> str:
    try:
        if "{" not in text:
            parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {text!r}") from None
    return text
