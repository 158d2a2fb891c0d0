"""Conditions to wait for, and polling on a worker."""
