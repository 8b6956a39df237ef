"""The model: univariate energies, their quadrature, the prior they form, the generator and the encoder."""
