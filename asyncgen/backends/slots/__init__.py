"""The in-flight engine: fixed slots, refilled as rows finish, over shared prefixes computed once."""
