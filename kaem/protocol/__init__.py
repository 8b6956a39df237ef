"""The wire contract: `kaem.proto`, the code generated from it, and translation to and from our own types."""
