"""Models and faults that tests and benchmarks share."""
