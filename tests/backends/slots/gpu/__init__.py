"""The decoder with fixed shapes."""
