"""For ``--dry-run``: print what would be submitted, or write it to jobspec files."""

from __future__ import annotations

import os
from pathlib import Path

from parsl_flux_bulk.cli.bulksubmit.inputs import UnusableInput
from parsl_flux_bulk.cli.bulksubmit.report import printable
from parsl_flux_bulk.cli.bulksubmit.streams import Output, reason
from parsl_flux_bulk.cli.bulksubmit.work import Work
from parsl_flux_bulk.errors import JobspecError


def dry_run(work: Work, directory: str, output: Output, errors: Output) -> bool:
    """Print a line for each job, as ``flux bulksubmit --dry-run`` does; or write its jobspec to `directory`.

    Returns
    -------
    bool
        Whether every job is valid.
    """
    target = _make(directory) if directory else None
    written = wrong = 0
    for item in work.items(lambda descriptor: None):
        try:
            request = item.request()
            if target is None:
                print(f"bulksubmit: submit {printable(item.shown)}", file=output)
            else:
                _write(target / f"{written:06d}.json", request.jobspec.text)
            written += 1
        except (JobspecError, OSError) as error:
            wrong += 1
            print(f"bulksubmit: {printable(item.label)}: {reason(error)}", file=errors)
    output.flush()
    if target is not None:
        print(f"bulksubmit: wrote {written} jobspec files to {directory}", file=output)
    if wrong:
        print(f"bulksubmit: {wrong} of {written + wrong} jobs are not valid", file=errors)
    return not wrong


def _make(directory: str) -> Path:
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.glob("*.json")):
            raise UnusableInput(
                f"--dry-run={directory}: there are *.json files, which `bulksubmit {directory}` would "
                "run, too; name an empty directory"
            )
    except OSError as error:
        raise UnusableInput(f"--dry-run={directory}: cannot be used: {error.strerror}") from error
    return path


def _write(path: Path, text: str) -> None:
    try:
        # Private, because a jobspec has the whole environment in it.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text + "\n")
    except OSError as error:
        raise UnusableInput(f"cannot write {str(path)!r} (--dry-run): {error.strerror}") from error
