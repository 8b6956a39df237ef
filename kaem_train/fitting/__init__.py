"""A prior for a finished decoder: fitted to latents by maximum likelihood."""
