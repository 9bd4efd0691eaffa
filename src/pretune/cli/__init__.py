"""The command line: parse, call, print. `pretune --help` starts without importing torch."""

from pretune.cli.app import app, main

# Importing a module adds its commands to `app`, in the order in which `pretune --help` lists them.
# isort: off
from pretune.cli import tokenizer  # noqa: F401
from pretune.cli import train  # noqa: F401
from pretune.cli import plan  # noqa: F401
from pretune.cli import describe  # noqa: F401
from pretune.cli import sweep  # noqa: F401
from pretune.cli import ladder  # noqa: F401
from pretune.cli import runs  # noqa: F401
from pretune.cli import use  # noqa: F401
from pretune.cli import report  # noqa: F401
from pretune.cli import compare  # noqa: F401
from pretune.cli import generate  # noqa: F401
from pretune.cli import chat  # noqa: F401
from pretune.cli import prompt  # noqa: F401
from pretune.cli import embed  # noqa: F401
from pretune.cli import inspect  # noqa: F401
from pretune.cli import push  # noqa: F401
from pretune.cli import convert  # noqa: F401
from pretune.cli import recipes  # noqa: F401
from pretune.cli import schedule  # noqa: F401
from pretune.cli import prepare  # noqa: F401
# isort: on

__all__ = ["app", "main"]
