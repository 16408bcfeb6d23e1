"""What a user brings: candidate, base, adapter, dataset, prompts, toolchain, and the file formats of each."""
