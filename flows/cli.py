"""The command line: parses, calls a flow, prints what it returns. Known errors become one line, here."""

import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from flows.commands import learning, machine, nights, review
from flows.commands.options import error_console, is_debugging
from pipeline.errors import NightlabelError

# For a command that runs outside the project's folder, where no [tool.prefect] is found.
TEMPORARY_SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "pipeline",
}
EARLIER_NAMES = {"precision": "variant"}  # of options: accepted, not shown

app = typer.Typer(
    name="nightlabel",
    help="Labels a company's text every night. Try: nightlabel demo",
    epilog="COMMAND --help shows examples. --debug with any command shows the traceback of an error.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: EARLIER_NAMES.get(name, name),
    },
)
for command in (
    machine.demo,
    nights.ingest,
    learning.train,
    learning.tune,
    learning.pretrain,
    learning.teach,
    nights.score,
    nights.nightly,
    nights.backfill,
    nights.publish,
    machine.up,
    machine.setup,
    machine.bench,
    machine.doctor,
):
    app.command()(command)

models_app = typer.Typer(help="Model versions, and which of them scoring uses.", no_args_is_help=True)
models_app.command("list")(learning.models_list)
models_app.command("show")(learning.models_show)
models_app.command("card")(learning.models_card)
models_app.command("compare")(learning.models_compare)
models_app.command("promote")(learning.models_promote)
models_app.command("rollback")(learning.models_rollback)
app.add_typer(models_app, name="models")

review_app = typer.Typer(help="Export rows for review, and import the answers.", no_args_is_help=True)
review_app.command("export")(review.review_export)
review_app.command("import")(review.review_import)
app.add_typer(review_app, name="review")


@app.callback(invoke_without_command=True)
def show_version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Print the version if --version is given without a command."""
    if version:
        print(f"nightlabel {metadata.version('nightlabel')}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit status 2 for what the user can correct, 1 for a defect of ours."""
    words = sys.argv[1:] if arguments is None else arguments
    for name, value in TEMPORARY_SERVER.items():
        os.environ.setdefault(name, value)
    if "--debug" in words:
        words = [word for word in words if word != "--debug"]
        os.environ["NIGHTLABEL_DEBUG"] = "1"
    try:
        app(words)
    except NightlabelError as error:
        if is_debugging():
            raise
        error_console.print(f"nightlabel: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        error_console.print("nightlabel: stopped; run the same command again to resume")
        sys.exit(130)
    except Exception as error:
        if is_debugging():
            raise
        error_console.print(
            f"nightlabel: {type(error).__name__}: {error} (a defect of nightlabel; --debug shows where)",
            markup=False,
            soft_wrap=True,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
