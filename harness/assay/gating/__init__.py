"""What makes a pytest test a gate: gates, their policy, causes, the pytest plugin, and the doctor."""
