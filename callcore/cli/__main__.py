"""``python -m callcore.cli``: the command line without the console script."""

import sys

from callcore.cli import main

sys.exit(main())
