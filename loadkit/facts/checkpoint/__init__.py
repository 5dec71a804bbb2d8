"""What a checkpoint's small files and the headers of its weight files say."""
