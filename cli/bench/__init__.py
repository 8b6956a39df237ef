"""`kaem bench`, by what it measures."""
