"""lighttts-cli with other daemons: ``python -m tests.cli.daemons.run_cli NAME=MODULE... -- ARGUMENT...``."""

from __future__ import annotations

import sys

from lighttts.cli import stack
from lighttts.cli.main import main

if __name__ == "__main__":
    split = sys.argv.index("--")
    stack._MODULES.update(dict.fromkeys(stack.STAGES, "tests.cli.daemons.worker"), broker="tests.cli.daemons.broker")
    stack._MODULES.update(argument.split("=") for argument in sys.argv[1:split])
    sys.exit(main(sys.argv[split + 1 :]))
