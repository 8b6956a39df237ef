"""The baseline families under the same contract, one file each: `uniform` to `image` and `latent`."""
