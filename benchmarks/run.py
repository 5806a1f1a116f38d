"""Runs every benchmark. Each is a script of its own as well."""

import handoff
import litserve_loops
import responses
import seam

import batching
import streams

if __name__ == "__main__":
    streams.main()
    print()
    handoff.main()
    print()
    seam.main()
    print()
    batching.main()
    print()
    responses.main()
    print()
    litserve_loops.main()
