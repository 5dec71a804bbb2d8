"""Packed weights: stacks of experts, and other parameters that are only multiplied with, in 4 or 8 bits.

bitsandbytes' layers replace plain `torch.nn.Linear`. Here a parameter stays where it is, under its name, and
holds codes instead of values. All but `layout`, which the plan reads too, is imported only while loading.

- `layout.Layout` says, without torch, how a parameter is packed: it consists of `units` (the experts of a
  stack; one for a single matrix), each packed alone with bitsandbytes' own bits, so that each is a view of
  the whole. Beside the codes, which are the parameter, it has companions: `NAME_scales` and, nested,
  `NAME_nested_scales` and `NAME_nested_offset`. The first axis of each counts the units.
- `codec` packs and unpacks: `pack(units, layout)` takes an iterable of the units' values, one at a time, so
  that what reads them may decode stored blocks (fp8, mxfp4) just before each is quantized.
- `modules.carry(module, {name: tensors})` has a module carry packed parameters: it becomes an instance of a
  subclass of its class, on which `module.NAME` is a `weight.PackedWeight`. `modules.packed(model)` iterates
  over all of them, as `(path, module, name, layout)`. `modules.uncarry` undoes it, with values in place.
- `weight.PackedWeight` stands for the values: indexing a stack gives one expert, views are put off, and a
  product (`F.linear`, `@`, `matmul`, `bmm`) unpacks what it needs, one expert at a time, in the backward pass
  again. Anything else unpacks the whole, which is right and costs its memory. So classes run unchanged.
- `experts.experts_forward` is what transformers' `ExpertsInterface` runs as "packed": it walks the experts
  that were hit. What is added in the activations, as LoRA is, goes into `module.packed_deltas[name]`: a
  callable that takes the `PackedWeight` and gives what the forward pass meets in its place.
- `quantizer` and `loading` are what transformers' `from_pretrained` calls: registered as the quantizer
  `config.METHOD`, it packs while weights are read, and puts stored codes in place.
"""
