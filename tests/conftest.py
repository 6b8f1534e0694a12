"""All tests: fixtures and the log check come from the test kit."""

import signal

pytest_plugins = ["flakefs.testing.plugin"]

# A shell starts what runs in its background with SIGINT ignored, and every child would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
