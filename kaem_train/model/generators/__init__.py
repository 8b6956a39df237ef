"""From latents to images: convolutions, Kolmogorov-Arnold layers, and decoders of the user's."""
