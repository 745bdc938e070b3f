"""Properties are checked on the same examples in every run, and as many as a short test allows."""

from hypothesis import settings

# Deadlines measure the machine, not the code, and examples kept from earlier runs would differ between machines.
settings.register_profile("properties", derandomize=True, deadline=None, max_examples=60, database=None)
settings.load_profile("properties")
