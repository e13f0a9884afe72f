"""The command line: a dispatcher free of torch and one module per verb."""
