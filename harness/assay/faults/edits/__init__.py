"""What cases alter a candidate with: the sandbox, files, models, tools, the processes of workers, GGUF files."""
