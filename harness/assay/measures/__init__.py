"""Pure functions of arrays and numbers: merge replay, strength, divergence, statistics, answers, metrics, sizing."""
