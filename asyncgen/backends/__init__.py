"""What generates: echo, static, and the interface they share."""
