"""What an artifact promises, measured on the file itself."""
