"""Requests, responses and field formats of the local Qarnot."""
