"""All tests: fixtures and the log check come from the test kit."""

pytest_plugins = ["flakefs.testing.plugin"]
