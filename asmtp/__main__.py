"""``python -m asmtp``."""

import sys

from asmtp.cli import main

sys.exit(main())
