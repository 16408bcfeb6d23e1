"""Fault injection: what the gates must catch, and the healthy variants that the gates must let pass."""
