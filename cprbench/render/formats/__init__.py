"""Formats of the report: each file takes the document, or records, and returns text or files."""
