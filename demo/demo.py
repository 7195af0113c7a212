"""Show the project in a minute: 1025 jobs through `bulksubmit`, then a Parsl pipeline.

Runs on Flux if there is one (``FLUX_URI``, or a ``flux`` command), else on this machine's own cores.
``--jobs N`` sets the number of jobs, ``--local`` does not use Flux.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import parsl
from parsl.config import Config

from parsl_flux_bulk import FluxBulkExecutor, jobspec
from parsl_flux_bulk.jobspec.resources import Resources


def make_jobspecs(directory: Path, count: int) -> None:
    """Write `count` jobspecs of ``sleep 0``, the same as ``flux submit --dry-run sleep 0`` prints."""
    text = jobspec.build(Resources(), ["sleep", "0"], environment=os.environ, cwd=str(directory)).text
    directory.mkdir()
    for number in range(count):
        (directory / f"sleep-{number:04}.json").write_text(text)


def run_jobs(directory: Path, *, local: bool) -> None:
    """Run the jobspecs of a directory with `bulksubmit`, which prints to this program's output."""
    options = ["--verbose", *(["--local"] if local else [])]
    print(f"$ bulksubmit {' '.join(options)} jobs/", flush=True)
    subprocess.run([sys.executable, "-m", "parsl_flux_bulk", *options, str(directory)], check=True)


@parsl.python_app
def estimate(seed: int, throws: int) -> float:
    """Estimate pi by throwing darts."""
    from random import Random

    random = Random(seed)
    return 4 * sum(random.random() ** 2 + random.random() ** 2 < 1 for _ in range(throws)) / throws


@parsl.python_app
def mean(*values: float) -> float:
    """Return the mean of the results of other apps."""
    return sum(values) / len(values)


@parsl.bash_app
def write(value: float, outputs: Sequence[parsl.File] = ()) -> str:
    """Write a number into a file with a shell command."""
    return f"echo 'pi is about {value:.3f}' > {outputs[0]}"


def run_pipeline(directory: Path, *, local: bool) -> None:
    """Run 16 apps in parallel, one that combines their results, and a bash app."""
    print("demo: now a Parsl pipeline", flush=True)
    executor = FluxBulkExecutor(label="demo", instance="local" if local else None)
    with parsl.load(Config(executors=[executor], run_dir=str(directory / "runinfo"))):
        estimates = [estimate(seed, throws=20_000) for seed in range(16)]
        result = parsl.File(str(directory / "pi.txt"))
        write(mean(*estimates), outputs=[result]).result(timeout=120)
        report = executor.status_report()
        print(f"demo: Parsl ran on {report.instance if report else 'nothing'}")
        print(
            "demo: 16 python apps -> 1 python app -> 1 bash app:", Path(result.filepath).read_text(), end=""
        )


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1025, metavar="N", help="jobs to run (default: 1025)")
    parser.add_argument(
        "--local", action="store_true", help="use this machine's own cores, even if there is Flux"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_jobspecs(directory / "jobs", options.jobs)
        run_jobs(directory / "jobs", local=options.local)
        run_pipeline(directory, local=options.local)


if __name__ == "__main__":
    main()
