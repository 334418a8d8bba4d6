"""RunSpec -> RunRecord: the parent plans, meters and writes; each run trains in its own spawned child.

planner.py  suite -> runs with their ids      runner.py   the parent's side of a run
worker.py   the child's side                  store.py    records on disk: atomic, hashed, never changed
"""
