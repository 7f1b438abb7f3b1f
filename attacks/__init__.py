"""What a malicious peer learns: a View in, Guesses out; never a key, never the truth, and no torch until it is used."""

from veilmesh.attacks.seen.observed import Observed, observe_updates
from veilmesh.attacks.view import ATTACKS, Attack, Guess, Public, Vantage, View, observe

__all__ = ["ATTACKS", "Attack", "Guess", "Observed", "Public", "Vantage", "View", "observe", "observe_updates"]
