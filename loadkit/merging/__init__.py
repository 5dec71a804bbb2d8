"""An adapter worked into its base on disk, shard by shard, with the proof that this alone was done."""
