"""Runs every benchmark. Each is a script of its own as well."""

import streams

if __name__ == "__main__":
    streams.main()
