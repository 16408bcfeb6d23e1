"""The command `assay`: one module per command, with its function `command`. Nothing here judges."""
