"""loadkit's own folder on disk: entries, checksums, and files that are whole or not there."""
