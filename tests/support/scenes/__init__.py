"""Scenes with objects that a user may pass, and that do what no one expects of them."""
