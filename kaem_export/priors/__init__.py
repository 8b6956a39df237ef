"""The nodes in front of the generator, by the layout of the prior."""
