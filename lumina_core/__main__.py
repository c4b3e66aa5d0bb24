"""`python -m lumina_core VERB`."""

import sys

from .cli import main

sys.exit(main())
