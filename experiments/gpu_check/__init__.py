"""Check of a machine with one GPU: `make gpu-check`."""
