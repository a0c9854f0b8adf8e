"""The exit codes of `yolo-batch` and `yolo-batch-dev`."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit code means. `description` has sentences for the documentation."""

    description: str

    def __new__(cls, value: int, description: str) -> "ExitCode":
        """Make a code with its description."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.description = description
        return code

    DONE = 0, "The command did what you asked."
    FAILED = (
        1,
        "Something failed, you answered no to a question, or the program that reads the output has "
        "ended. "
        "Standard error has the reason.",
    )
    USAGE = 2, "An option or argument is wrong. Nothing was started."
    CANNOT_SERVE = (
        3,
        "A setting is wrong, or the model cannot be loaded, verified or exported. "
        "The service exits with the same code when it cannot start.",
    )
    NOT_ALL_DONE = (
        4,
        "`watch` or `submit --wait`: no image is missing, but some failed, are parked or are gone. "
        "The counts say how many. `results --images`: the export is complete, but files of images "
        "are missing.",
    )
    NOT_FINISHED = 5, "`watch` or `submit --wait`: images are still missing after --timeout."
    INTERRUPTED = 130, "You pressed Ctrl-C. What was finished before is kept."
