"""Lineage: places in buckets as assets and datasets, and the facets of OpenLineage events."""
