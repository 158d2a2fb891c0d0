"""Decide about the size of a pool, and when to open and close it, from the record of earlier pools."""
