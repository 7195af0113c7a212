"""Run a command in a terminal of tmux, and draw what the terminal then shows as an SVG picture.

::

    python tools/terminal_picture.py docs/images/bulksubmit.svg 'bulksubmit --copies 1025 -- sleep 0'

The documentation's pictures of terminals are made so, from real runs.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

SOCKET = "terminal-picture"


def tmux(*arguments: str) -> str:
    """Run a command of a tmux server of this tool's own; return its output."""
    command = ["tmux", "-L", SOCKET, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def screen(command: str, *, columns: int, rows: int, after: float | None) -> str:
    """Return what a terminal shows at the end of a command, or some seconds after its start."""
    session = f"{command}; tmux -L {SOCKET} wait-for -S ended; sleep 600"
    tmux("new-session", "-d", "-x", str(columns), "-y", str(rows), session)
    try:
        if after is None:
            tmux("wait-for", "ended")
        else:
            time.sleep(after)
        return tmux("capture-pane", "-p", "-e")
    finally:
        tmux("kill-server")


def draw(text: str, *, title: str, columns: int) -> str:
    """Return a picture of a terminal's lines, whose colors are escape sequences."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    for line in text.rstrip().splitlines():
        console.print(Text.from_ansi(line), soft_wrap=True)
    # A picture loads no font from elsewhere; the viewer's own monospace font fits as well.
    template = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title=title, code_format=template)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("command", help="command line for a shell; the picture shows it after a prompt")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--after", type=float, metavar="S", help="do not wait for the end of the command")
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    shown = screen(options.command, columns=options.columns, rows=options.rows, after=options.after)
    text = f"\x1b[1;32m$\x1b[0m {options.command}\n{shown}"
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(draw(text, title=options.title, columns=options.columns), encoding="utf-8")


if __name__ == "__main__":
    main()
