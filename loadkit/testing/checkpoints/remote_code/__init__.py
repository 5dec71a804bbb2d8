"""The code that the remote-code checkpoint brings along; transformers copies these two files into its folder."""
