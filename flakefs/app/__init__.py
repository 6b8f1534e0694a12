"""The whole stack put together: from a configuration to an open file system, and the process behind a mount."""
