"""What is measured: one caller on engines in turn, and many callers of a server."""
