"""What is injected: each module lists the cases of one subject. None imports another."""
