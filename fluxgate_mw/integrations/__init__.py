"""Thin adapters, one module per framework; each imports of its framework what it needs, and none imports another."""
