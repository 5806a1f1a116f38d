"""What several tests use: sources, engines, forms, schedulers, servers."""
