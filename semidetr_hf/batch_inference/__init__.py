"""Detection on more images than fit into memory, in steps that survive an interruption."""
