"""``python -m crane`` is the ``crane`` command."""

import sys

from crane.cli import main

sys.exit(main())
