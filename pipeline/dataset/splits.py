"""The assignment of labelled texts to splits: by a hash or stratified, and no group in two splits.

Here every text has a group: its own, if documents have none. By hash, the position of a group in [0, 1) decides. In a
stratified split groups stay whole too: each counts for the most frequent class of its texts, and within each class the
splits are cut by texts, so that a group goes to the split of its middle text. Shares are then approximate.
"""

import numpy as np

from pipeline.dataset.labelled_rows import TEST, TRAIN, VALIDATION, LabelledRows


def assign_splits(
    rows: LabelledRows, pool: np.ndarray, method: str, validation_share: float, test_share: float
) -> np.ndarray:
    """Return the split of each row of the pool, int8; equal for rows of one group.

    Args:
        rows: labelled documents.
        pool: int64 [texts], the rows to divide, each text once.
        method: "hash" or "stratified".
        validation_share: share of the texts for validation, unless a validation split is given.
        test_share: share of the texts for testing, unless a test split is given.
    """
    if (rows.given_split == TEST).any():
        test_share = 0.0
    if (rows.given_split == VALIDATION).any():
        validation_share = 0.0
    position, strata = rows.position[pool], rows.strata[pool]
    groups = np.unique(rows.group_ids[pool], return_inverse=True)[1]
    if method == "stratified":
        position = _stratified_position(position, strata, groups)
    elif method != "hash":
        raise AssertionError(f"unknown split method {method!r}")
    splits = np.full(len(pool), TRAIN, dtype=np.int8)
    splits[position < test_share + validation_share] = VALIDATION
    splits[position < test_share] = TEST
    given_train = np.isin(groups, groups[rows.given_split[pool] == TRAIN])
    if not given_train.all():  # groups given for training are tested on only if there are no others
        splits[given_train & (splits == TEST)] = TRAIN
    _fill_gaps(splits, strata, groups, position, {VALIDATION: validation_share, TEST: test_share})
    return splits


def _stratified_position(position: np.ndarray, strata: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return positions that spread the texts of each class evenly over [0, 1), equal for texts of one group."""
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    classes = int(strata.max(initial=0)) + 1
    pairs, counts = np.unique(groups * classes + strata, return_counts=True)
    by_count = np.lexsort((pairs, -counts, pairs // classes))
    most_frequent = by_count[np.unique(pairs[by_count] // classes, return_index=True)[1]]
    stratum = pairs[most_frequent] % classes  # of each group
    order = np.lexsort((position[first], stratum))
    totals = np.bincount(stratum, weights=sizes)
    middle = np.empty(len(first))  # rank within the class of the middle text of each group
    middle[order] = np.cumsum(sizes[order]) - sizes[order] + (sizes[order] - 1) / 2
    middle -= (np.cumsum(totals) - totals)[stratum]
    spread: np.ndarray = (middle / totals[stratum])[groups]
    return spread


def _fill_gaps(
    splits: np.ndarray, strata: np.ndarray, groups: np.ndarray, position: np.ndarray, shares: dict[int, float]
) -> None:
    """Move groups, in place, so that a small corpus trains on every class, and no split with a share is empty."""
    for stratum in np.unique(strata):
        of_class = np.flatnonzero(strata == stratum)
        if not (splits[of_class] == TRAIN).any():
            splits[groups == groups[of_class[np.argmax(position[of_class])]]] = TRAIN
    for split, other in ((VALIDATION, TEST), (TEST, VALIDATION)):
        if not shares[split] or (splits == split).any():
            continue
        training = np.flatnonzero(splits == TRAIN)
        sizes = np.bincount(strata[training])
        pairs, counts = np.unique(np.stack([groups[training], strata[training]]), axis=1, return_counts=True)
        needed = pairs[0][counts == sizes[pairs[1]]]  # groups without which training would lose a class
        spare = training[~np.isin(groups[training], needed)]
        if not spare.size and len(np.unique(groups[splits == other])) > 1:  # of few groups it may have too many
            spare = np.flatnonzero(splits == other)
        if spare.size:
            # The group nearest in size to the share: a customer with most of the texts is to be trained on.
            distance = np.abs(np.bincount(groups)[groups[spare]] - shares[split] * len(groups))
            splits[groups == groups[spare[np.lexsort((position[spare], distance))[0]]]] = split
