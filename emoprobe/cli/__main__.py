"""Run the command line by `python -m emoprobe.cli`."""

import sys

from emoprobe.cli import main

sys.exit(main())
