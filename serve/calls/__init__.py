"""What surrounds every call: who is let in, on which terms, and how it ends."""
