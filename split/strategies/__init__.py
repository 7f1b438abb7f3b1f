"""Protocols of split mode, one file each."""
