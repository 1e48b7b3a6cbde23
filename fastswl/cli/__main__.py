"""`python -m fastswl.cli`: the same as the command `fastswl`."""

import sys

from fastswl.cli import main

sys.exit(main())
