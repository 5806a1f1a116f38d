"""`top`: from a metrics page to a live view.

`page` fetches the page and finds the batchers on it, `changes` compares two readings, `view` says
what is shown of a batcher, and `show` how; these three do no I/O. `run` leads them.
"""
