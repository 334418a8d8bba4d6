"""The report: document (what is said), contents (records -> document), and a file per format."""
