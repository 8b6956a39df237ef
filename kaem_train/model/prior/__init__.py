"""The prior: univariate energy densities, what they form, and the frames they stand in."""
