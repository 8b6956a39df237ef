"""The models of a server: which files there are, how they are loaded, what is served."""
