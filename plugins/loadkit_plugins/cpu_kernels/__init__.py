"""Compiled CPU kernels for bitsandbytes' operators: but for `plugin`, imported only while loading."""
