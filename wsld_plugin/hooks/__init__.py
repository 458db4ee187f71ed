"""Hooks that watch training from the side."""
