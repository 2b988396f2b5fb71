"""What environments raise beside a user's mistakes."""


class EngineUnfitError(RuntimeError):
    """The fast engine cannot give the official numbers here; the official classes still can."""
