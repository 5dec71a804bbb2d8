"""Weights that are stored in codes with a scale a block (fp8, mxfp8, mxfp4). It is no plugin.

- `headers`, without torch, says what such a checkpoint holds as if it were stored in floating point, and what
  is wrong with it: a scale that is missing, or belongs to another shape.
- `decoding` turns codes and scales into values, some rows or one expert at a time.
- `loading` has transformers' `from_pretrained` do that to each tensor as it is read.
- `files` shows the files' tensors decoded, for whatever compares them with a model.
"""
