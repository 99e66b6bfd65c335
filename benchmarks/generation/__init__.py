"""What ``benchmarks.engines`` is made of: models, workloads, engines in processes of their own, and the floor."""
