"""Where images lie: files, folders, archives, the hub."""
