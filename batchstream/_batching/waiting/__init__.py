"""The requests that wait: their queue, which of them is next, and for what there is room."""
