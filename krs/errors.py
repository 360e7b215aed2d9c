"""The one exception that krs raises on purpose."""


class KrsError(ValueError):
    """Bad input or a model that krs cannot handle.

    The message names the cause first and the remedy after it. Nothing that is raised as a
    `KrsError` leaves a model changed.
    """
