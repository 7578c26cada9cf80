"""Shared by all tests. Nothing heavy at import: a test names the backend it runs on."""
