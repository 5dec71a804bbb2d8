"""What was asked: options, profiles and training recipes, and who asked for each."""
