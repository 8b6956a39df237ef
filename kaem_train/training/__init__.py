"""The training loop and what it needs: objectives, optimiser, averages, progress."""
