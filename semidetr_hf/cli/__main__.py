"""`python -m semidetr_hf.cli` is `semidetr`."""

import sys

from .app import main

sys.exit(main())
