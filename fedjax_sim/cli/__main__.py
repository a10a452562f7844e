"""`python -m fedjax_sim.cli`."""

import sys

from fedjax_sim.cli.parser import main

sys.exit(main())
