"""Bases and collaborators of the operators."""
