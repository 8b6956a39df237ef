"""What can be watched: metrics, traces, the log."""
