"""What an artifact is turned into for other machines."""
