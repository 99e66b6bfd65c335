"""What ``python -m benchmarks.soak`` is made of: the plan, its sessions, what they hold, and the comparison."""
