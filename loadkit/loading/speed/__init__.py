"""What makes a load faster. It may be deleted without changing a result."""
