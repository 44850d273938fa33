"""Compares runs on one self-contained page, with every plot and table as files for a paper beside it.

    python -m peft_pretraining.report runs/sweep -o report.html

RUNS are run folders, or folders that hold some. Methods are told apart by the labels a sweep gave them, or by
their flags; each is compared at the learning rate that served it best. Plots (PNG, SVG) and tables (CSV, Markdown,
LaTeX) go into the folder report_files/ beside the page.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from peft_pretraining.console import reader_may_leave
from peft_pretraining.errors import UsageError
from peft_pretraining.report.page import Report, make_report
from peft_pretraining.report.published import default_baseline
from peft_pretraining.report.runs import find_runs

_NEEDED = ("jinja2", "pandas", "scipy")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 for a mistake in the arguments or damaged runs."""
    arguments = _parser().parse_args(argv)
    try:
        _check_packages()
        title = arguments.title or f"Runs of {', '.join(path.name for path in arguments.runs)}"
        report = make_report(find_runs(arguments.runs), title, arguments.baseline, arguments.every_layer)
        files = _write(report, arguments.output)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    with reader_may_leave():
        for section in report.sections if arguments.table else ():
            print(section.task.title, *section.cautions, "", *(t.markdown() for t in section.tables), sep="\n")
        print(f"{arguments.output}\n{files}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m peft_pretraining.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help="run folders, or folders that hold some")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page (report.html)")
    parser.add_argument(
        "--baseline",
        default=default_baseline(),
        help=f"the method that others are tested against, by label or optimizer (default: {default_baseline()})",
    )
    parser.add_argument("--title", help="title of the page")
    parser.add_argument(
        "--every_layer",
        action="store_true",
        help="of --log_details, draw a line for every layer (default: one for each role where there are many)",
    )
    parser.add_argument("--table", action="store_true", help="also print the tables as Markdown")
    return parser


def _check_packages() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f"the report needs {', '.join(missing)}: pip install -e '.[report]'")


def _write(report: Report, output: Path) -> Path:
    """Returns the folder of the parts."""
    parts = output.with_name(f"{output.stem}_files")
    try:
        report.save_parts(parts)
        output.write_text(report.html(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written ({error.strerror}); choose another place") from error
    return parts


if __name__ == "__main__":
    sys.exit(main())
