"""For tests of any layer: real servers, real mounts, workloads, what goes wrong on purpose."""
