"""The errors of the product. Each message says what is wrong, where, and what to do next."""


class NightlabelError(Exception):
    """A failure the user can fix; the command line prints it as one line and exits with status 2."""


class InputError(NightlabelError):
    """A source cannot be read: missing file, wrong format or column, no text."""


class RejectRateError(InputError):
    """More rows were rejected than `max_reject_rate` allows; nothing was committed."""


class BatchError(NightlabelError):
    """A batch is missing, damaged, or exists with different content."""


class PublicationError(NightlabelError):
    """Labels cannot be published: there are none, or they are already published."""


class ReviewError(NightlabelError):
    """Rows cannot be exported for review, or the answers do not match them."""


class WorkspaceError(NightlabelError):
    """The workspace cannot be read or written."""


class ConfigError(NightlabelError):
    """A setting has an invalid value."""


class TrainingDataError(NightlabelError):
    """The labelled documents cannot train a classifier: none, one class only, or too few examples."""


class ModelError(NightlabelError):
    """A model is unknown, has no champion, or its bundle is damaged."""


class PromotionError(NightlabelError):
    """A version has not been shown to be good enough to replace the champion."""


class DeviceError(NightlabelError):
    """The requested device cannot run the model here."""


class AccountingError(Exception):
    """Rows in and rows out do not add up: a bug, never a user error (exit status 1)."""


class ParityError(Exception):
    """The exported graph disagrees with the trained weights (exit status 1)."""


class DeviceMemoryError(DeviceError):
    """A minibatch does not fit into the device's memory; a smaller one may."""


class StoppedError(Exception):
    """Work was cancelled because other work failed."""


class ScoringError(Exception):
    """A part could not be labelled, for a reason that is not a user error; names the rows (exit status 1)."""
