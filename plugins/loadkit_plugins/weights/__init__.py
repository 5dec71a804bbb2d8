"""Whether every tensor came from the files, and holds what they hold."""
