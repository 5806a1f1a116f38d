"""Runs every benchmark, `--quick` in about a minute. Each is a script of its own as well."""

import argparse

import admission
import ends
import goals
import handoff
import importing
import litserve_loops
import responses
import seam

import batching
import streams
import text

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of each, and one round")
    quick = parser.parse_args().quick
    for number, benchmark in enumerate(
        (
            streams,
            ends,
            text,
            handoff,
            seam,
            batching,
            admission,
            importing,
            responses,
            litserve_loops,
        )
    ):
        if number:
            print()
        benchmark.main(quick=quick)
    print()
    goals.main()
