"""What an enemy would submit, as code that makes it: no bomb and no link lies in the repository.

payloads.py   texts that do harm where a page, a table or a terminal takes them for more than text
documents.py  JSON, JSON lines and TOML          folders.py  names and kinds of files          archives.py  zips
corpus.py     all of these as whole submissions, by name            reading.py  reads them in a process of their own
"""
