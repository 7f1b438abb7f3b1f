"""Defences of split mode, one file each: on activations, on gradients, and on what comes back."""
