"""What is done to a loaded model before an adapter is attached, and which of its parts train."""
