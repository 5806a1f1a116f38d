"""The native core, in C, where it was built: what it is in Python, and in C, has the same names."""
