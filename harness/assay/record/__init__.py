"""The record of a run, the verdict that follows from the record, and every rendering of the record."""
