"""The command line: `llava-batch JOB` or `python -m jobs JOB`. Settings come from --config YAML, flags override it.

    python -m jobs caption --input photos/ --output out/
    python -m jobs ocr --config job.yaml --limit 100
    python -m jobs sweep --config sweep.yaml

Exit 0: done within the error budget; 1: failed; 2: bad usage or settings, found before anything starts.
"""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import (
    UNSET,
    App,
    Argument,
    ArgumentCollection,
    CoercionError,
    ConsumeMultipleError,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    RepeatArgumentError,
    UnusedCliTokensError,
)
from cyclopts.config import Dict
from pydantic import ValidationError

from jobs.caption import caption
from jobs.check_model import check_model
from jobs.completion import print_completion
from jobs.config import Config, is_storage_option, read_config, storage_options
from jobs.doctor import doctor
from jobs.ending import end_process
from jobs.export import export
from jobs.flags import File, under
from jobs.init import init
from jobs.merge import merge
from jobs.ocr import ocr
from jobs.plan import plan
from jobs.report import report
from jobs.retry import retry_failed
from jobs.streams import keep_streams
from jobs.submit import own_and_job, submit
from jobs.sweep import sweep
from jobs.verify import verify
from pipeline.environment import version
from schemas.errors import Refused
from schemas.job import name_prompt
from schemas.wording import describe_settings, did_you_mean, fitting_lines, printable_lines, redacted

_COMMANDS = (
    caption,
    ocr,
    sweep,
    retry_failed,
    merge,
    verify,
    export,
    report,
    plan,
    check_model,
    doctor,
    init,
    submit,
)
_NARROWEST = 40  # columns of a terminal
_HELP_FLAGS = frozenset({"--help", "-h", "--version"})
_HELP = """Batch inference for LLaVA-NeXT on Ray Data: images and prompts in Parquet, answers in Parquet.

llava-batch caption --input photos/ --output out/
llava-batch ocr --input scans/ --output out/ --strips auto
llava-batch caption --config job.yaml --limit 100 --dry-run
llava-batch COMMAND --help

Without --model the small bundled model answers. Every flag is a key of the --config file as well.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; return the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # of names that the terminal's encoding lacks, or that are none
        sys.stdout.reconfigure(errors="backslashreplace")
    _widen()
    app, tokens = build_app(), list(sys.argv[1:] if argv is None else argv)
    try:
        result = app.meta(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _refuse(find_unknown(app, tokens) or describe(error))
    except KeyboardInterrupt:  # before there was anything to stop
        return 130
    except Refused as error:  # a setting that only the input or the model could show to be bad
        return _refuse(str(error))
    return result if isinstance(result, int) else 0


def _widen() -> None:
    """Have help written for a terminal of some width: for one of 0 it cannot be, for one of 1 it takes minutes."""
    columns = os.environ.get("COLUMNS", "")
    is_narrow = columns.isdecimal() and int(columns) < _NARROWEST
    if is_narrow or shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)


def _check_folder(tokens: Sequence[str]) -> None:
    """Raise Refused where the folder that a command was typed in is gone: paths lead nowhere, and libraries break."""
    try:
        os.getcwd()
    except OSError as error:
        if not _HELP_FLAGS & set(tokens):
            raise Refused(f"the current folder must be there, it is not ({error.strerror}): cd to another") from error


def run() -> NoReturn:
    """Run one job as a process of its own."""
    keep_streams()
    end_process(main())


def build_app() -> App:
    """Return the commands, and --config before any of them."""
    lists = Parameter(negative_iterable=(), consume_multiple=(1, None))  # --allow-root $ROOTS without ROOTS is no list
    app = App(
        name="llava-batch",
        version=version,
        help=_HELP,
        help_format="plaintext",
        default_parameter=lists,
        config=(keep_texts,),
        group_parameters=under("This call"),
        result_action="return_value",
    )
    for command in _COMMANDS:
        app.command(command)
    app.command(print_completion(app), name="completion")

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Annotated[
            File | None,
            Parameter(show_default=False, group=under("This call"), help="A YAML file of settings; flags override it."),
        ] = None,
        storage_option: Annotated[
            tuple[str, ...],
            Parameter(
                show_default=False,
                consume_multiple=False,
                group=under("This call"),
                help="STORE.NAME=VALUE of how stores are reached, as s3.endpoint_url=http://host:9000 or "
                "s3.profile=NAME; no keys; repeatable.",
            ),
        ] = (),
    ) -> object:
        _check_folder(tokens)
        if tokens[:1] == ("submit",):  # all of it is the job's, which runs elsewhere
            there = [f"--config={config}"] if config else []
            there += [f"--storage-option={option}" for option in storage_option]
            return app(own_and_job((*tokens, *there)), exit_on_error=False, print_error=False)
        own, options = configured(app, tokens, config)
        if all_options := (*options, *storage_option):
            from pipeline.storage.options import use_options

            use_options(all_options)
        return app(own, exit_on_error=False, print_error=False)

    return app


def configured(app: App, tokens: tuple[str, ...], config: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give a command the file of settings that stands before it; return the command, and how stores are reached by its
    file. That is read once, as what comes from a pipe is gone then."""
    file = config or file_in(tokens)
    if file is None:
        return tokens, ()
    found = read_config(file)
    options = storage_options(found)
    if tokens[:1] == ("sweep",):  # its file has tables in tables, which flags have not, so it reads that itself
        if file.is_fifo():
            raise Refused(f"--config of a sweep must be a file, as it is read again, got {file}: write it to one")
        return (*tokens, "--config", str(config)) if config else tokens, options
    if config and found.settings:
        app.config = (settings_of(found), keep_texts)
    return tokens, options


def bind(tokens: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that a command line has, checked as where it runs; raise Refused for what is wrong."""
    from pipeline.storage.options import check_option

    app = build_app()
    try:
        _, call, _ = app.meta.parse_args(tokens, exit_on_error=False, print_error=False)
        rest, config = call.arguments["tokens"], call.arguments.get("config")
        own, options = configured(app, rest, config)
        for option in (*options, *call.arguments.get("storage_option", ())):
            check_option(option)
        _, bound, _ = app.parse_args(own, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise Refused(find_unknown(app, tokens) or describe(error)) from error
    return dict(bound.arguments)


def file_in(tokens: Sequence[str]) -> Path | None:
    """Return the file of a command that has a --config of its own, as a sweep, None where none is named."""
    for token, value in zip_longest(tokens, tokens[1:], fillvalue=""):
        flag, equals, here = token.partition("=")
        file = here if equals else value
        if flag == "--config" and file.strip() and "\0" not in file:  # which the command itself refuses
            return Path(file)
    return None


def settings_of(config: Config) -> Callable[[App, tuple[str, ...], ArgumentCollection], None]:
    """Return the file's settings as cyclopts takes them, each of its setting's type; raise Refused for any other."""

    def fill_in(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        hints = {_key(name): argument.hint for argument in arguments for name in argument.names}
        settings: dict[str, Any] = {}
        for name in config.settings:
            key = _key(name)
            if is_storage_option(name):
                continue
            if key not in hints:
                near = did_you_mean(key, hints)
                raise Refused(f"{config.at(name)}: {name} is no setting of {' '.join(commands)}{near}")
            if key in settings:
                raise Refused(f"{config.at(name)}: {name} is there twice, with _ and with -")
            settings[key] = _read_setting(config, name, hints[key])
        given = {name: value for name, value in settings.items() if value is not None}
        Dict(given, use_commands_as_keys=False)(app, commands, arguments)

    return fill_in


def keep_texts(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Have lists of texts hold what was typed, as --stop '["a"]': cyclopts 5.4 reads JSON in those of a pydantic model
    (Argument._json), and no parameter of its own turns that off. What has a value already it leaves alone."""
    for argument in arguments:
        if argument.keys and _is_texts(argument.hint):
            argument.tokens = [
                token.evolve(implicit_value=[token.value]) if token.implicit_value is UNSET else token
                for token in argument.tokens
            ]


def _is_texts(hint: object) -> bool:
    return hint in (tuple[str, ...], tuple[str, ...] | None)


def _read_setting(config: Config, name: str, hint: object) -> object:
    """Return a setting's value: prompts may be a mapping of names to texts, and one value may stand for a list of
    it."""
    value = config.settings[name]
    if _key(name) == "prompt" and isinstance(value, dict):
        config.check(name, dict[str, str])
        return [name_prompt(key, text) for key, text in value.items()]
    if _key(name) == "json_schema" and isinstance(value, dict):
        return json.dumps(value)
    many = hint == tuple[str, ...] or (_is_texts(hint) and value is not None)
    if many and not isinstance(value, list):
        config.check(name, str)
        return [value]
    config.check(name, hint)
    return value


def find_unknown(app: App, tokens: Sequence[str]) -> str | None:
    """Return a line about the flag that the command does not have, with the nearest that it has; None where it has
    all."""
    command = next((token for token in tokens if token in app), None)
    if command is None:
        return None
    known = {name for argument in app[command].assemble_argument_collection() for name in argument.names}
    known |= {"--config", "--storage-option", "--help", "--version"}
    for token in own_and_job(tokens) if command == "submit" else tokens:
        if token == "--":
            return None
        flag = token.partition("=")[0]
        if len(flag) > 2 and flag.startswith("--") and _flag(_key(flag)) not in known:
            return f"{flag} is no flag of {command}{did_you_mean(flag, known)}"
    return None


def describe(error: CycloptsError) -> str:
    """Return one line for each thing that is wrong, naming the flag, the rule and the value."""
    cause = error.__cause__ or error
    if isinstance(error, ConsumeMultipleError) and error.argument is not None:
        return f"{error.argument.name} must be given a value, it has none: is a variable of the shell unset?"
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} must be given once, it is there twice"
    if isinstance(error, MissingArgumentError) and error.argument is not None and not _is_given(error):
        return f"{_named(error.argument)} is required"
    if isinstance(error, UnusedCliTokensError):
        command, surplus = (" ".join(tokens or ()) for tokens in (error.command_chain, error.unused_tokens))
        return f"{command} takes no more arguments, got {surplus}"
    if isinstance(cause, Refused) and isinstance(error, CoercionError) and error.argument is not None:
        return f"{_named(error.argument)} {cause}"
    if not isinstance(cause, ValidationError):
        return " ".join(str(error).split())
    return "\n".join(describe_settings(cause, spell=_flag))


def _is_given(error: MissingArgumentError) -> bool:
    """Return whether the flag is there and only its value is missing."""
    assert error.argument is not None
    return any(token.partition("=")[0] in error.argument.names for token in error.root_input_tokens or ())


def _named(argument: Argument) -> str:
    """Return a flag as it is typed, and an argument without one as help has it."""
    return argument.name if argument.field_info.is_keyword_only else argument.name.removeprefix("--").upper()


def _key(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _flag(setting: str) -> str:
    return "--" + setting.split(".")[0].replace("_", "-")


def _refuse(message: str) -> int:
    sys.stderr.write(f"error: {fitting_lines(printable_lines(redacted(message)))}\n")
    return 2


if __name__ == "__main__":
    run()
