"""The `kaem` command: one file per command, no logic of its own."""
