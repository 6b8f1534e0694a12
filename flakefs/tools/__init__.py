"""Looking after a file system from outside: checks, repair, garbage, moves of volumes. Blocking, without a mount."""
