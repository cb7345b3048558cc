"""Thin adapters, one module per framework; each imports its framework, and none imports another."""
