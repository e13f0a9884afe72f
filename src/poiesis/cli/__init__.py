"""The command line: one module per verb, each with `run(args) -> exit code`, imported on use."""
