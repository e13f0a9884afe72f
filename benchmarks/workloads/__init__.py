"""What `speed.py` times: one module per kind of work, each with a list WORKLOADS."""
