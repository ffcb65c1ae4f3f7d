"""The command line: `llava-batch JOB` or `python -m jobs JOB`. Settings come from --config YAML, flags override it.

    python -m jobs caption --input photos/ --output out/
    python -m jobs ocr --config job.yaml --limit 100
    python -m jobs sweep --config sweep.yaml

Exit 0: done within the error budget; 1: failed; 2: bad usage or settings, found before anything starts.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Yaml
from pydantic import ValidationError

from jobs.caption import caption
from jobs.ocr import ocr
from jobs.retry import retry_failed
from jobs.sweep import sweep
from jobs.verify import verify
from schemas.errors import Refused
from schemas.job import name_prompt
from schemas.wording import describe_settings, printable_lines, redacted


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job; returns the exit status."""
    app = build_app()
    try:
        result = app.meta(list(sys.argv[1:] if argv is None else argv), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _refuse(describe(error))
    except KeyboardInterrupt:  # before there was anything to stop
        return 130
    except Refused as error:  # a setting that only the input or the model could show to be bad
        return _refuse(str(error))
    return result if isinstance(result, int) else 0


def build_app() -> App:
    """The commands, and --config before any of them."""
    lists = Parameter(negative_iterable=(), consume_multiple=True)
    app = App(name="llava-batch", help=_HELP, default_parameter=lists, result_action="return_value")
    app.command(caption)
    app.command(ocr)
    app.command(sweep)
    app.command(retry_failed)
    app.command(verify)

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Annotated[Path | None, Parameter(help="A YAML file of settings; flags override it.")] = None,
    ) -> object:
        if config and tokens[:1] == ("sweep",):  # its file has tables in tables, which flags have not
            tokens = (*tokens, "--config", str(config))
        elif config:
            app.config = (_Settings(config, must_exist=True, use_commands_as_keys=False),)
        return app(tokens, exit_on_error=False, print_error=False)

    return app


class _Settings(Yaml):
    """A YAML file of settings, where prompts may be a mapping of names to texts as well."""

    @property
    def config(self) -> dict[str, Any]:
        """The file's settings, with the prompts as their flag takes them."""
        settings = super().config
        prompts = settings.get("prompt")
        if not isinstance(prompts, dict):
            return settings
        return {**settings, "prompt": [name_prompt(str(name), str(text or "")) for name, text in prompts.items()]}


_HELP = "Batch inference for LLaVA-NeXT on Ray Data: images and prompts in Parquet, answers in Parquet."


def describe(error: CycloptsError) -> str:
    """One line for each thing that is wrong, naming the flag, the rule and the value."""
    cause = error.__cause__ or error
    if not isinstance(cause, ValidationError):
        return str(error)
    return "\n".join(describe_settings(cause, spell=_flag))


def _flag(place: str) -> str:
    return "--" + place.split(".")[0].replace("_", "-")


def _refuse(message: str) -> int:
    sys.stderr.write(f"error: {printable_lines(redacted(message))}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
