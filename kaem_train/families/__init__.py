"""Models of other families, trained on the same data by the same trainer, to compare with."""
