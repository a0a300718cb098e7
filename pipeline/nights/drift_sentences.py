"""How a drifted measure reads: tonight's value, the reference's, and a sentence with the likely cause."""

from collections.abc import Callable

import numpy as np

from pipeline.metrics.profile import Profile

Description = tuple[str, str, str]  # tonight, reference, sentence


def describe_labels(tonight: Profile, reference: Profile) -> Description:
    """Describe the class whose share changed most."""
    classes = range(len(tonight.labels.bins))
    changes = [abs(tonight.labels.share(number) - reference.labels.share(number)) for number in classes]
    changed = int(np.argmax(changes))
    name = tonight.labels.bins[changed]
    share, usual = format_share(tonight.labels.share(changed)), format_share(reference.labels.share(changed))
    sentence = (
        f"{share} of the labels are {name}, {usual} were in the model's reference: something happened, or the texts "
        "are of another kind; read some of them."
    )
    return f"{name} {share}", f"{name} {usual}", sentence


def describe_lengths(tonight: Profile, reference: Profile) -> Description:
    """Describe the number of tokens of a text."""
    mean, usual = tonight.mean_length, reference.mean_length
    cause = "texts of another kind, or the wrong column"
    if mean < usual / 2:
        cause = "the wrong column, or texts that were cut off"
    elif mean > usual * 2:
        cause = "the wrong column, or several joined, or markup left in (--set ingest.clean_html=true)"
    sentence = (
        f"Half of the texts have {_middle_half(tonight)} ({mean:,.1f} on average), {_middle_half(reference)} "
        f"({usual:,.1f}) in the model's reference: {cause}; read some of them."
    )
    return f"{mean:,.1f} tokens", f"{usual:,.1f} tokens", sentence


def _middle_half(profile: Profile) -> str:
    """Return the range of lengths that holds the middle half of the texts, to the precision of the bins."""
    shares = np.cumsum(profile.lengths.counts) / max(profile.non_empty, 1)
    first, last = (int(np.searchsorted(shares, share)) for share in (0.25, 0.75))
    bounds = profile.lengths.bins
    low = int(bounds[first])
    if last + 1 == len(bounds):
        return f"{low:,} or more tokens"
    high = int(bounds[last + 1]) - 1
    if high == low:
        return f"{low:,} tokens" if low > 1 else "1 token"
    return f"{low:,} to {high:,} tokens"


def describe_unknown_words(tonight: Profile, reference: Profile) -> Description:
    """Describe the share of unknown words."""
    share, usual = format_share(tonight.unknown_share), format_share(reference.unknown_share)
    cause = "another language, or the wrong column"
    if tonight.unknown_share < reference.unknown_share:
        cause = "texts that repeat themselves, or that it was trained on"
    sentence = (
        f"{share} of the words are unknown to the model, {usual} were in its reference: {cause}; read some of them."
    )
    return share, usual, sentence


def describe_confidence(tonight: Profile, reference: Profile) -> Description:
    """Describe the mean confidence."""
    mean, usual = format_share(tonight.mean_confidence), format_share(reference.mean_confidence)
    cause = "texts that repeat themselves, or that it was trained on; read some of them."
    if tonight.mean_confidence < reference.mean_confidence:
        cause = "texts unlike those it was trained on; read the least confident ones, label some, and train again."
    return mean, usual, f"Confidence is {mean} on average, {usual} in the model's reference: {cause}"


def format_share(share: float) -> str:
    """Return a share in percent, with a decimal where it is small."""
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


MEASURE_NAMES = {"labels": "labels", "lengths": "length", "unknown_words": "unknown words", "confidence": "confidence"}
DESCRIBE: dict[str, Callable[[Profile, Profile], Description]] = {
    "labels": describe_labels,
    "lengths": describe_lengths,
    "unknown_words": describe_unknown_words,
    "confidence": describe_confidence,
}
