"""``python -m cdc_agent.cli``: the command line without an installed script."""

import sys

from cdc_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
