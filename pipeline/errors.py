"""The errors a user can meet. Each message says what is wrong, where, and what to do next."""


class NightlabelError(Exception):
    """Something the user can mend. Becomes one line on the command line, exit status 2."""


class InputError(NightlabelError):
    """A source cannot be read as what it claims to be: missing file, wrong column, no text."""


class RejectRateError(InputError):
    """More rows were refused than `max_reject_rate` allows; nothing was committed."""


class BatchError(NightlabelError):
    """A batch is missing, damaged, or exists with other content."""


class PublicationError(NightlabelError):
    """Labels cannot be published: there are none, or they are published already."""


class ReviewError(NightlabelError):
    """Rows cannot be given out for review, or what came back does not fit."""


class WorkspaceError(NightlabelError):
    """The workspace cannot be read or written."""


class ConfigError(NightlabelError):
    """A setting has a value that cannot work."""


class TrainingDataError(NightlabelError):
    """The labelled documents cannot train a classifier: none, one class, an example too few."""


class ModelError(NightlabelError):
    """A model is unknown, has no champion, or its bundle is damaged."""


class PromotionError(NightlabelError):
    """A version is not shown to be good enough to replace the champion."""


class DeviceError(NightlabelError):
    """The requested device cannot run the model here."""


class AccountingError(Exception):
    """Rows in and rows out do not add up: a defect of ours, never of the user (exit status 1)."""


class ParityError(Exception):
    """The exported graph disagrees with the trained weights (exit status 1)."""


class DeviceMemoryError(DeviceError):
    """A batch does not fit into the device's memory: smaller batches may."""


class StoppedError(Exception):
    """Work that was given up because other work failed."""


class ScoringError(Exception):
    """A part could not be labelled for a reason that is not the user's; says which rows (exit status 1)."""
