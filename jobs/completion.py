"""completion: the script by which a shell completes commands and flags.

eval "$(llava-batch completion bash)"
"""

import sys
from collections.abc import Callable
from typing import Annotated, Literal

from cyclopts import App, Parameter

Shell = Literal["bash", "zsh", "fish"]


def print_completion(app: App) -> Callable[[Shell], int]:
    """Return the command that prints the script for all commands of `app`."""

    def completion(shell: Annotated[Shell, Parameter(help="Whose script to print.")]) -> int:
        """Print what makes a shell complete commands and flags.

        In ~/.bashrc: eval "$(llava-batch completion bash)"
        """
        sys.stdout.write(app.generate_completion(shell=shell))
        return 0

    return completion
