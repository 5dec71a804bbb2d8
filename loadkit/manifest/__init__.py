"""What was loaded, from what and by what; and loading it again."""
