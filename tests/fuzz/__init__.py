"""`python -m tests.fuzz`, or `make fuzz`: inputs that nobody would write, drawn by hypothesis."""
