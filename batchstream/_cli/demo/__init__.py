"""`demo`: LitServe's own loop and ours, side by side.

`server.py` is the program that is run twice, once with one line changed. `script` says what the
clients do, and `clients` lets them do it. `servers` runs the two programs, and `keeper` ends them
if nothing else does. `board` keeps count of what has happened, `show` and `svg` show it, and `run`
leads all of them.
"""
