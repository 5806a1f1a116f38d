"""The plainest search for stop strings, which the library's is held against."""


def search(text, stops, *, include):
    """Return what is let through of a text, and which stop string was found."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None
