"""`python -m assay` is the command `assay`."""

import sys

from assay.cli.app import main

sys.exit(main())
