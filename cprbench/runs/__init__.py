"""RunSpec -> RunRecord: the parent plans, meters and writes; each run trains in its own spawned child (sessions/).

planner.py  suite -> runs with their ids      runner.py   the parent's side of a run
child.py    the process and its two pipes     store.py    records on disk: atomic, hashed, never changed
"""
