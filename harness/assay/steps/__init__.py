"""What a step is: the catalogue of steps, the runner that makes them, and the store that keeps results."""
