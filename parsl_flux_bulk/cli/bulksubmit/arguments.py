"""Parse the command line of `bulksubmit`: options, command, input lists."""

from __future__ import annotations

import argparse
import contextlib
import os

from parsl_flux_bulk.bulk.inputs import InputError, has_delimiter, split_inputs
from parsl_flux_bulk.cli.bulksubmit.option_parser import option_parser
from parsl_flux_bulk.cli.bulksubmit.per_resource import PER_RESOURCE

COMMAND_ONLY = (
    "copies", "cc", "bcc", "ntasks", "cores_per_task", "gpus_per_task", "nodes", "exclusive", "time_limit",
    "cores", "tasks_per_node", "tasks_per_core", "gpus_per_node", "rlimit", "duration", "queue", "bank",
    "requires", "dependency", "begin_time", "job_name", "cwd", "env", "input",
    "output", "error", "open_mode", "label_io", "unbuffered", "setopt", "setattr", "taskmap", "signal",
    "flags", "define", "literal",
)  # fmt: skip
"""Options that jobspec files have no use for."""

_COPIES = ("copies", "cc", "bcc")

_DRY_RUN = "--dry-run"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments; exit with status 2 and a message if they are invalid.

    Returns
    -------
    argparse.Namespace
        Every option under its long name; `inputs`, the files; `command`; `lists`, the input lists.
        `dry_run` is None, "" to print, or a directory.
    """
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    before, command = _split_command(arguments)
    # Without --, but with input lists, options end at the command, as in flux-bulksubmit(1).
    posix = not command and "--" not in arguments and has_delimiter(before)
    parser = option_parser(posix=posix)
    # argparse has no option whose value is optional and never the next word.
    before = [f"{_DRY_RUN}=" if word == _DRY_RUN else word for word in before]
    options = parser.parse_args(before) if posix else parser.parse_intermixed_args(before)
    if posix:
        command = [_DRY_RUN if word == f"{_DRY_RUN}=" else word for word in options.inputs]
        options.inputs = []
    elif "--" in arguments and not command:
        parser.error("no command after --")
    try:
        options.command, options.lists = split_inputs(command)
    except InputError as error:
        parser.error(str(error))
    if options.lists and not options.command:
        options.command = ["{}"]
    _check(options, parser)
    return options


def asks_for_little(options: argparse.Namespace) -> bool:
    """Whether a job of the command fits into any instance; jobs of files are assumed to."""
    size = [options.ntasks, options.cores_per_task, options.nodes]
    size += [getattr(options, name) for name in PER_RESOURCE]
    more = (options.gpus_per_task, options.exclusive, options.queue, options.bank, options.requires)
    return all(number in (None, "1") for number in size) and not any(more) and not options.dependency


def _complete() -> None:
    """Answer a shell that completes the command line, and exit; see argcomplete."""
    with contextlib.suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(option_parser())


def _split_command(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split at ``--``, because argparse would parse the command's own arguments as options."""
    if "--" not in arguments:
        return arguments, []
    where = arguments.index("--")
    if has_delimiter(arguments[:where]):
        return arguments, []
    return arguments[:where], arguments[where + 1 :]


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    sources = {
        "files": bool(options.inputs), "a command": bool(options.command),
        "--commands": options.commands is not None, "--jobs": options.jobs is not None,
    }  # fmt: skip
    given = [name for name, is_given in sources.items() if is_given]
    if not given:
        parser.error(
            "nothing to run: give -- COMMAND ..., jobspec files, a directory, '-', --commands FILE or "
            "--jobs FILE"
        )
    if given == ["files", "a command"]:
        parser.error(f"give files or a command, not both: {options.inputs[0]!r} stands before --")
    if len(given) > 1:
        parser.error(f"give one of {', '.join(sources)}, not {' and '.join(given)}")
    if sum(value is not None for value in (options.copies, options.cc, options.bcc)) > 1:
        parser.error("give one of --copies, --cc and --bcc")
    if options.output and (options.output_dir or options.watch):
        parser.error(f"give --output or {'--output-dir' if options.output_dir else '--watch'}, not both")
    if options.output_dir and options.watch:
        parser.error("--watch prints what the instance keeps: give --output-dir, and `tail -f DIR/*.out`")
    if options.json and (options.resume or options.rerun):
        parser.error("records go on in the file of --resume or --rerun: leave out --json")
    if options.retry_on and not options.retries:
        parser.error("--retry-on needs --retries N")
    if options.literal and options.lists:
        parser.error("--literal leaves no place for inputs: give input lists, or --literal")
    if not options.command:
        for name in _COPIES if options.commands is not None else COMMAND_ONLY:
            if getattr(options, name) and not (options.inputs and name == "open_mode"):
                option = "--" + name.replace("_", "-")
                parser.error(f"{option} needs a command: bulksubmit {option} ... -- COMMAND")
