"""The remote-code checkpoint's own code; transformers copies these two files into its folder."""
