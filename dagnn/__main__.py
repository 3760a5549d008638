"""`python -m dagnn`."""

import sys

from .cli import main

sys.exit(main())
