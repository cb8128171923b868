"""`python -m vlmopt` is `vlmopt`."""

import sys

from .cli.main import main

sys.exit(main())
