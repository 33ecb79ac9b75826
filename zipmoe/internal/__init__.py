"""What the three services say to each other."""
