"""The command `assay`: one module per command. Nothing here judges."""
