"""What was planned against what was loaded."""
