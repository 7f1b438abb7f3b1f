"""No test of this room may fail because the machine is busy."""

import os

from hypothesis import settings

# Fewer examples every day than `make test-all` takes.
settings.register_profile("untimed", deadline=None, max_examples=int(os.environ.get("EXAMPLES", "50")))
settings.load_profile("untimed")
